"""Allowed names of folders, metrics and entries in a tracker."""

from unicodedata import category

# MLflow's longest name of a run; a folder's is 255 bytes.
_MOST_BYTES = 250


def label_problem(label: str) -> str | None:
    """Returns the reason why a text cannot be a label; None: it can.

    Args:
        label: such as the name of an experiment in MLflow.
    """
    if not label.strip():
        return "it is empty"
    if any(category(char) in ("Cc", "Cs", "Zl", "Zp") for char in label):
        return "it holds a line break or another character that cannot be printed"
    if label != label.strip():
        return "it begins or ends with a space"
    if len(label.encode()) > _MOST_BYTES:
        return f"it has {len(label.encode())} bytes, more than {_MOST_BYTES}"
    return None


def name_problem(name: str) -> str | None:
    """Returns the reason why a text cannot name a folder below another; None: it can.

    A `/` makes folders within folders, as in robomimic: `project/run`.

    Args:
        name: such as `experiment.name`.
    """
    if not {"", ".", ".."}.isdisjoint(name.split("/")) and name.strip():
        return (
            "it leads out of its folder, or names none: use a name such as 'run' or 'project/run'"
        )
    return label_problem(name)
