"""A trained model of version v2 as one ONNX file, for phones and other programs: raw windows in, probabilities out.

    python export.py -mv v2 -s ready --out model.onnx

reads   the model that comes with the project (-s ready, the default), or one of your own named by -mv, -d, -dv, -s
writes  --out: input `windows` (N, 120, 6) float32, acceleration in m/s^2 with gravity and rotation rate in rad/s, at
        20 Hz, N free, NaN in the last three where there is no gyroscope; output `probabilities` (N, K), calibrated

Representation, members and temperature are inside; classes, rate, units and where the model came from stand in
the file's metadata. Needs the packages of requirements-export.txt. Takes seconds.
"""

import argparse
import importlib.util
import json
import logging
import sys
import warnings
from pathlib import Path

import torch
from torch import nn

import inference
from bookkeeping import artefacts
from bookkeeping.commands import Parser, UserError, a_name, a_source, run

PACKAGES = ("onnx", "onnxscript")
CHANNELS = "acceleration x, y, z in m/s^2 with gravity; rotation rate x, y, z in rad/s, NaN without a gyroscope"


def get_args(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-mv", "--model_version", type=a_name, help="entry of the model configs (default v2)")
    add("-d", "--dataset", type=a_source, help="of a model of your own: what it was trained on")
    add("-dv", "--dataset_version", type=a_name, help="likewise: rate_length of the windows (default 20_120)")
    add("-s", "--save_model", type=a_name, help="its stem; ready, without -d: the model that comes with the project")
    add("--out", type=Path, required=True, metavar="FILE.onnx", help="the file to write")
    args = parser.parse_args(argv)
    if args.out.suffix.lower() != ".onnx":
        parser.error(f"--out {args.out}: give a file name that ends with .onnx")
    return args


class Calibrated(nn.Module):
    """Raw windows (N, T, 6) -> calibrated probabilities (N, K), as inference.Model.probabilities gives them."""

    def __init__(self, judge, temperature):
        super().__init__()
        self.judge, self.temperature = judge, temperature

    def forward(self, windows):
        """A gyroscope that is missing in part is missing: all of it is NaN then."""
        acc, gyro = windows[..., :3], windows[..., 3:]
        missing = gyro.isnan().flatten(1).any(1)[:, None, None]
        whole = torch.cat([acc, torch.where(missing, torch.nan, gyro)], 2)
        return (self.judge(whole) / self.temperature).softmax(1)


def to_onnx(model):
    """An inference.Model as an onnx.ModelProto, with its metadata. Raises UserError unless it is of version v2."""
    if model.as_module is None:
        raise UserError(f"-mv {model.version}: only models of version v2 are exported; choose one with -mv v2")
    module = Calibrated(model.as_module(), model.temperature or 1.0).eval()
    example = torch.randn(3, inference.STEPS, 6)
    names = {"input_names": ["windows"], "output_names": ["probabilities"]}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # which names packages that nothing here needs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the exporter says of its own insides
        program = torch.onnx.export(
            module, (example,), dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("N")},), **names
        )
    proto = program.model_proto
    without_traces(proto.graph, *proto.functions)
    for key, value in metadata(model).items():
        proto.metadata_props.add(key=key, value=value)
    return proto


def without_traces(*graphs):
    """Take out what the exporter notes at every node: lines of code and paths of the machine it ran on."""
    for graph in graphs:
        values = [*graph.input, *graph.output, *getattr(graph, "initializer", ())]  # a function's are mere names
        for part in (graph, *graph.node, *(value for value in values if not isinstance(value, str))):
            part.ClearField("metadata_props"), part.ClearField("doc_string")
        graph.ClearField("value_info")


def metadata(model):
    """What stands in the file beside the graph: {key: text}, JSON where it is more than a word."""
    record = model.record or {}
    config = record.get("config", {})
    from_keys = ("dataset", "dataset_version", "model_version", "label_rate", "train")
    return {
        "classes": json.dumps(model.names),
        "rate_hz": str(inference.RATE),
        "steps": str(inference.STEPS),
        "channels": CHANNELS,
        "temperature": str(model.temperature or 1.0),
        "trained": json.dumps({key: config[key] for key in from_keys if key in config}),
        "made_from": json.dumps(record.get("made_from", {})),
        "weights_sha256": record.get("fingerprint", ""),
        "terms": record.get("terms", ""),
    }


def main(args):
    if absent := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"{', '.join(absent)} not installed: python -m pip install -r requirements-export.txt")
    artefacts.check_writable(args.out)
    of_data = args.dataset, args.dataset_version
    files = inference.named(*of_data, args.model_version, args.save_model, method="v2")
    model = inference.load(files) if files else inference.load_ready()
    proto = to_onnx(model)
    content = proto.SerializeToString()
    with artefacts.atomic(args.out) as handle:
        handle.write(content)
    shapes = f"windows (N, {inference.STEPS}, 6) -> probabilities of {', '.join(model.names)}"
    print(f"written: {args.out}, {len(content) / 1e6:.2f} MB: {shapes}")
    return proto


if __name__ == "__main__":
    sys.exit(run(main, get_args))
