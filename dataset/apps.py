"""Which sensor app wrote these files: descriptions in config/recordings/, found by names, headers, metadata."""

import functools
import posixpath
import re

from bookkeeping.artefacts import read_json
from bookkeeping.commands import UserError
from bookkeeping.configs import HERE
from dataset import formats
from dataset.description import FORM, Layout, below, fits

TEXT = (".csv", ".txt", ".tsv", ".csv.gz")
SEEN = 400  # lines of a file that tell whose it is: the header is sought in 100, the columns in 200 below
FOLDER = HERE / "config" / "recordings"


def descriptions():
    """{app: its Layouts, in the order in which they are tried}."""
    found = {}
    for path in sorted(FOLDER.glob("*.json")):
        specs = read_json(path, "a ready description")
        found[path.stem] = [Layout(spec, f"{path.name}, number {i}") for i, spec in enumerate(specs, 1)]
    return found


def choose(source, names, notes):
    """[(Layout, names of a folder's files), ...] for the files `names` of a Source: what fits each folder.

    Says which and why in notes. Raises UserError where none fits, or those of two apps do.
    """
    folders = {}
    for name in names:
        folders.setdefault(posixpath.dirname(name), []).append(name)
    known, chosen = descriptions(), []
    lines = functools.cache(lambda name: formats.first_lines(source, name)[:SEEN])  # asked for by each description
    for folder, mine in sorted(folders.items()):
        fitting = {}
        for app, layouts in known.items():
            whys = ((layout, why_fits(lines, mine, layout)) for layout in layouts)
            if found := next((pair for pair in whys if pair[1]), None):
                fitting[app] = found
        if len(fitting) > 1:
            raise UserError(
                f"{source.label}/{folder}: files of {' and of '.join(fitting)} together; give --recordings FILE.json"
            )
        for app, (layout, why) in fitting.items():
            if layout.gyro is None and (name := _gyroscope(lines, mine)):
                what = f"{source.label}: {name} looks like a gyroscope's, but not as {app} writes it"
                raise UserError(f"{what}; describe it: python dataset/prepare.py --look FOLDER shows what is there")
            own, others = layout.patterns()
            main = [name for name in mine if (fits(own, name) if own else is_own(lines, name, layout))]
            near = [name for name in below(folder, names) if name not in main]
            beside = [name for name in near if any(fits(other, name) for other in others)]
            notes.add(f"read as {app}", f"{folder or source.label}, by {why} ({layout.where})")
            chosen.append((layout, main + beside))
    if not chosen:
        first = ", ".join(sorted(names)[:3]) or "no table"
        raise UserError(
            f"--recordings auto: {source.label} (it holds {first}) is of none of {', '.join(known)}; describe it: "
            "python dataset/prepare.py --look FILE shows what is there"
        )
    return chosen


def _gyroscope(lines, names):
    """A file with rows that is named like a gyroscope's, or has columns that are; None for none."""
    for name in names:
        if formats.ending(name) in TEXT and sum(bool(line.strip()) for line in lines(name)) > 1:
            head, base = " ".join(lines(name)[:3]), posixpath.basename(name)
            if re.search(r"(?i)gyro(?!.*uncal)", base) or re.search(r"(?i)gyro|rotationrate", head):
                return name
    return None


def why_fits(lines, names, layout):
    """What of a folder's files `names` a description's `when` asks for, in words; "" if they have not all of it."""
    said = []
    for pattern, wanted in layout.when.items():
        found = [name for name in names if fits(pattern, posixpath.basename(name))]
        name = next((name for name in found if _holds(lines, name, wanted)), None)
        if name is None:
            return ""
        said.append(posixpath.basename(name))
    return ", ".join(said)


def is_own(lines, name, layout):
    """Whether a file is what `when` asks for: others beside it are none of the app's recordings."""
    return any(fits(p, posixpath.basename(name)) and _holds(lines, name, wanted) for p, wanted in layout.when.items())


def _holds(lines, name, wanted):
    """Whether a file has columns of these names, or in its first row one of these texts in each of these columns."""
    if formats.ending(name) not in TEXT:
        return False
    lines = lines(name)
    if not wanted:
        return any(line.strip() for line in lines)
    try:
        head = formats.see(lines, FORM, list(wanted), name)
        table = formats.Table(name, head.names, head.first)
        columns = [table.find(column) for column in wanted if isinstance(wanted, list) or column in head.names]
    except UserError:
        return False
    if isinstance(wanted, list):  # some apps write the header alone for a sensor that gave nothing
        return any(line.strip() for line in lines[head.first - 1 :])
    row = formats.cells(lines[head.first - 1], head.separator) if head.first <= len(lines) else []
    first = {head.names[i]: row[i] if i < len(row) else "" for i in columns}
    return all(first.get(column, "").lower() in texts for column, texts in wanted.items())
