"""What there is to run.

python -m icl_align.train       trains a network and compares it with every other learner
python -m icl_align.evaluate    evaluates a finished run under other options
python -m icl_align.compare     runs side by side
python -m icl_align.theory      the transformers of the theory, built by hand
python -m icl_align.dashboard   the charts of online runs in Weights & Biases

In a checkout:

python -m experiments           what the theory claims, judged
python -m benchmarks            speed and memory on this machine

Each explains itself with --help.
"""

from icl_align.running.command import show

if __name__ == "__main__":
    show(__doc__.strip())
