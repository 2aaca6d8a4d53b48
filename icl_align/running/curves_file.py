"""curves.json as it is read."""

from pathlib import Path
from typing import Any

from icl_align.running.files import DamagedFileError, read_json
from icl_align.world import Measures


def read_curves(path: Path, measures: Measures) -> dict[str, Any] | None:
    """What a curves.json holds; None where there is no file.

    Raises:
      DamagedFileError: it is no JSON, or holds something else than curves of the world.
    """
    if not path.exists():
        return None
    curves = read_json(path)
    try:
        axis, of_trained = curves[measures.axis], curves[measures.compared][measures.trained]
        curves["step"], curves["options"], curves["seeds"]
        for quantities in of_trained.values():
            for quantity in measures.quantities:
                lengths = {len(quantities[quantity][key]) for key in ("mean", "low", "high")}
                if lengths != {len(axis)}:
                    raise KeyError(quantity)
    except (KeyError, TypeError, AttributeError) as error:
        words = ", ".join(measures.quantities)
        raise DamagedFileError(path, f"does not hold curves of {words}") from error
    return curves
