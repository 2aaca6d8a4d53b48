"""Builds the networks of the theory and tests them, or compares a finished run with them.

python -m icl_align.theory [KEY=VALUE ...]                the tables of exactness and knock-outs
python -m icl_align.theory run_dir=DIR [KEY=VALUE ...]    is that what training found?
"""

from icl_align.alignment.theory.command import main

if __name__ == "__main__":
    main()
