"""Ready descriptions of sensor apps, found by what files hold; --look, which shows a file before anything is made."""

import json
from datetime import datetime, timedelta

import numpy as np
import pytest
from own_recordings import NAMES, G, acc, assert_begin, body, clock, every, gravity, gyro, linear, plain, read, refused
from own_recordings import table as table_of
from raw_files import project, run, shared, written, zipped  # noqa: F401

from bookkeeping.commands import UserError
from dataset import apps
from dataset.look import look

SECONDS = 20.0
A, W = clock(SECONDS, 100), clock(SECONDS, 59.4, start=0.02)  # a phone's accelerometer and gyroscope
EPOCH = 1_735_689_600
DEG = 180 / np.pi


def stamps(t, form="%Y-%m-%d %H:%M:%S", point="."):
    made = [datetime(2025, 1, 1) + timedelta(milliseconds=round(1000 * s)) for s in t.tolist()]
    return [f"{when:{form}}{point}{when.microsecond // 1000:03d}" for when in made]


def phyphox(names, turn="", sep=",", point=".", pause=False):
    """{file: text}: names are patterns of columns by file."""
    files = {}
    values = {
        "Accelerometer": (A, acc),
        "Gyroscope": (W, gyro),
        "Linear Acceleration": (A, linear),
        "Raw Data": (A, acc),
    }
    for file, pattern in names.items():
        t, value = values[file]
        header = sep.join(f'"{name}"' for name in ["Time (s)", *(pattern.format(axis) for axis in turn or "xyz")])
        files[f"{file}.csv"] = table_of(header + "\n", t, value(t), sep=sep, point=point, form="{:.9E}")
    files["meta/device.csv"] = f'"property"{sep}"value"\n"deviceModel"{sep}"made up"\n'
    rows = "START 0 1;PAUSE 9 2;START 9 3;PAUSE 20 4" if pause else "START 0 1;PAUSE 20 2"
    head = sep.join(f'"{name}"' for name in ("event", "experiment time", "system time", "system time text"))
    lines = [f'"{e}"{sep}{t}{sep}{s}{sep}"x"' for e, t, s in (row.split() for row in rows.split(";"))]
    files["meta/time.csv"] = "\n".join([head, *lines]) + "\n"
    return files


PHYPHOX = {"Accelerometer": "Acceleration {} (m/s^2)", "Gyroscope": "Gyroscope {} (rad/s)"}
IPHONE = {"Accelerometer": "{} (m/s^2)", "Gyroscope": "{} (rad/s)"}


def sensor_logger(*sensors, platform="android", standard="false", marks=""):
    """{file: text} of files named in `sensors`, in the platform's sign."""
    sign = -1 if platform == "ios" and standard == "false" else 1
    kinds = {
        "TotalAcceleration": (A, acc(A)),
        "Accelerometer": (A, sign * linear(A)),
        "Gravity": (A, sign * gravity(A)),
    }
    kinds |= {"Gyroscope": (W, gyro(W)), "AccelerometerUncalibrated": (A, -acc(A) / G)}
    files = {}
    for sensor in sensors:
        if sensor == "WristMotion":
            unit = sign / (1 if standard == "true" else G)
            header = "time,seconds_elapsed," + ",".join(
                kind + axis for kind in ("rotationRate", "gravity", "acceleration") for axis in "XYZ"
            )
            values = np.concatenate([gyro(A), gravity(A) * unit, linear(A) * unit], 1)
            files["WristMotion.csv"] = table_of(
                header + "\n", [f"{EPOCH * 10**9 + round(1e9 * s)}" for s in A], A, values
            )
            continue
        t, values = kinds[sensor]
        ns = [f"{EPOCH * 10**9 + round(1e9 * s)}" for s in t]
        files[f"{sensor}.csv"] = table_of("time,seconds_elapsed,z,y,x\n", ns, t, values[:, ::-1])
    files["Metadata.csv"] = f"version,platform,standardisation\n3,{platform},{standard}\n"
    files["Annotation.csv"] = marks
    return files


def wide(header, *columns, file="rec.csv", **form):
    return {file: table_of(header + "\n", *columns, **form)}


def names(*patterns):
    return ",".join(pattern.format(axis) for pattern in patterns for axis in "XYZ")


def sensorlog(*groups):
    kinds = {
        "accelerometer": [
            "accelerometerTimestamp_sinceReboot(s)",
            names("accelerometerAcceleration{}(G)"),
            -acc(A) / G,
        ],
        "gyro": ["gyroTimestamp_sinceReboot(s)", names("gyroRotation{}(rad/s)"), gyro(A)],
        "motion": ["motionTimestamp_sinceReboot(s)"],
    }
    kinds["motion"] += [names("motionRotationRate{}(rad/s)", "motionUserAcceleration{}(G)", "motionGravity{}(G)")]
    kinds["motion"] += [np.concatenate([gyro(A), -linear(A) / G, -gravity(A) / G], 1)]
    header, columns = ["loggingTime(txt)", "loggingSample(N)"], [stamps(A), [str(i) for i in range(len(A))]]
    for group in groups:
        header += kinds[group][:2]
        columns += [251_699 + A, kinds[group][2]]
    return wide(",".join([*header, "label(N)"]), *columns, ["null"] * len(A))


def physics_toolbox(*sensors):
    kinds = {"gF": ("gFx,gFy,gFz", acc(A) / G), "a": ("ax,ay,az", linear(A)), "w": ("wx,wy,wz", gyro(A))}
    head = ",".join(["time", *(kinds[sensor][0] for sensor in sensors)])
    return {"rec.csv": table_of(f"\n{head},\n", A, *(kinds[sensor][1] for sensor in sensors), end=",\n")}


def androsensor(*patterns, ending="Time since start in ms ,YYYY-MO-DD HH-MI-SS_SSS", **form):
    values = [acc(A), linear(A), gyro(A)] if len(patterns) == 3 else [acc(A), gyro(A)][: len(patterns)]
    ms = [f"{1000 * s + 26:.0f}" for s in A]
    return wide(f"{names(*patterns)},{ending}", *values, ms, stamps(A, point=":"), **form)


def axivity(gyroscope):
    head = "Time,Accel-X (g), Accel-Y (g), Accel-Z (g)" + ", Gyro-X (d/s), Gyro-Y (d/s), Gyro-Z (d/s)" * gyroscope
    return wide(head, stamps(A), acc(A) / G, *[gyro(A) * DEG][:gyroscope])


def empatica():
    t = clock(SECONDS, 32)
    first = "".join(", ".join([text] * 3) + "\n" for text in (f"{EPOCH}.000000", "32.000000"))
    files = {"ACC.csv": first + table_of(None, np.round(acc(t) / G * 64), form="{:.0f}"), "tags.csv": f"{EPOCH}.5\n"}
    return files | {"BVP.csv": f"{EPOCH}.0\n64.0\n" + "0.1\n" * 900}


def shimmer(kind, gyroscope, text=False, sep=","):
    groups = [f"S_1_{sensor}_{{}}_CAL" for sensor in (f"Accel_{kind}", "Gyro")[: 1 + gyroscope]]
    time, units = ("FormattedUnix", "yyyy/mm/dd hh:mm:ss.000") if text else ("Unix", "ms")
    header = ",".join([f"S_1_Timestamp_{time}_CAL", names(*groups)]).replace(",", sep)
    units = sep.join([units, *["m/(s^2)"] * 3, *["deg/s"] * 3 * gyroscope])
    when = stamps(A, "%Y/%m/%d %H:%M:%S") if text else [f"{1000 * (EPOCH + s):.3f}" for s in A]
    body = table_of(None, when, acc(A), *[gyro(A) * DEG][:gyroscope], sep=sep, end=sep + "\n")
    return {"rec.csv": f'"sep={sep}"\n{header}{sep}\n{units}{sep}\n{body}'}


CASES = {  # app and variant: (files, number of its description, channels)
    "phyphox": (phyphox(PHYPHOX | {"Linear Acceleration": "Linear Acceleration {} (m/s^2)"}), 1, 6),
    "phyphox, iPhone": (phyphox(IPHONE, "XYZ", ";", ","), 2, 6),
    "phyphox, tab": (phyphox(PHYPHOX, sep="\t", point=","), 1, 6),
    "phyphox, acceleration alone": (phyphox({"Accelerometer": PHYPHOX["Accelerometer"]}), 3, 3),
    "phyphox, iPhone's acceleration alone": (phyphox({"Accelerometer": "{} (m/s^2)"}, "XYZ"), 4, 3),
    "phyphox, one table": (phyphox({"Raw Data": PHYPHOX["Accelerometer"]}), 5, 3),
    "sensor_logger": (sensor_logger("TotalAcceleration", "Accelerometer", "Gyroscope"), 1, 6),
    "sensor_logger, standard": (
        sensor_logger("Accelerometer", "Gravity", "Gyroscope", platform="ios", standard="true"),
        2,
        6,
    ),
    "sensor_logger, iPhone": (sensor_logger("Accelerometer", "Gravity", "Gyroscope", platform="ios"), 3, 6),
    "sensor_logger, two parts": (sensor_logger("Accelerometer", "Gravity", "Gyroscope"), 4, 6),
    "sensor_logger, total alone": (sensor_logger("TotalAcceleration", "AccelerometerUncalibrated"), 5, 3),
    "sensor_logger, standard alone": (sensor_logger("Accelerometer", "Gravity", platform="ios", standard="true"), 6, 3),
    "sensor_logger, iPhone alone": (sensor_logger("Accelerometer", "Gravity", platform="ios"), 7, 3),
    "sensor_logger, two parts alone": (sensor_logger("Accelerometer", "Gravity"), 8, 3),
    "sensor_logger, watch in standard": (sensor_logger("WristMotion", platform="ios", standard="true"), 9, 6),
    "sensor_logger, watch": (sensor_logger("WristMotion", platform="ios"), 10, 6),
    "sensorlog": (sensorlog("accelerometer", "gyro", "motion"), 1, 6),
    "sensorlog, motion": (sensorlog("motion"), 2, 6),
    "sensorlog, alone": (sensorlog("accelerometer"), 3, 3),
    "physics_toolbox": (physics_toolbox("gF", "a", "w"), 1, 6),
    "physics_toolbox, alone": (physics_toolbox("gF"), 2, 3),
    "androsensor": (
        androsensor("ACCELEROMETER {} (m/s²)", "LINEAR ACCELERATION {} (m/s²)", "GYROSCOPE {} (rad/s)"),
        1,
        6,
    ),
    "androsensor, short": (androsensor("ACCE{}", "GYRO{}", ending="Time since start in ms ,date", end="\r\n"), 2, 6),
    "androsensor, alone": (androsensor("ACCELEROMETER {} (m/s²)"), 3, 3),
    "axivity": (axivity(1), 1, 6),
    "axivity, alone": (axivity(0), 2, 3),
    "empatica_e4": (empatica(), 1, 3),
    "shimmer": (shimmer("WR", 1), 1, 6),
    "shimmer, low noise": (shimmer("LN", 1, sep="\t"), 2, 6),
    "shimmer, alone": (shimmer("WR", 0), 3, 3),
    "shimmer, low noise alone": (shimmer("LN", 0), 4, 3),
    "shimmer, dates": (shimmer("WR", 1, True), 5, 6),
    "shimmer, low noise dates": (shimmer("LN", 1, True), 6, 6),
    "shimmer, dates alone": (shimmer("WR", 0, True), 7, 3),
    "shimmer, low noise dates alone": (shimmer("LN", 0, True), 8, 3),
}


@pytest.mark.parametrize("case", CASES)
def test_ready_descriptions(tmp_path, case):
    files, number, channels = CASES[case]
    app = case.partition(",")[0]
    if number % 2:
        source = zipped(tmp_path / "from app.zip", files)
    else:
        source = written(tmp_path / "day 1", files)
    windows, notes = read(tmp_path, source, "auto")
    near = (0.25, 0.03) if app == "empatica_e4" else (0.1, 0.04)
    assert_begin(windows.data, every(0, 19.9), near=near, within=0.06)
    assert np.isnan(windows.data[..., 3:]).all() == (channels == 3)
    assert notes[0].startswith(f"read as {app}: ") and f"({app}.json, number {number})" in notes[0], notes
    said = [line for line in notes if line.startswith("files not read, not")]
    assert len(said) <= 1


def test_every_ready_description_is_tried_here():
    tried = {(case.partition(",")[0], number) for case, (_, number, _) in CASES.items()}
    there = {(app, i) for app, layouts in apps.descriptions().items() for i, _ in enumerate(layouts, 1)}
    assert there == tried


def test_several_recordings_of_one_app_and_of_two(tmp_path):
    files = {f"{day}/{name}": text for day in ("Mo", "Di 2") for name, text in CASES["sensor_logger"][0].items()}
    windows, notes = read(tmp_path, files, "auto")
    assert_begin(windows.data, every(0, 19.9), every(0, 19.9), near=(0.1, 0.04), within=0.06)
    nested = {f"day/{name}": text for name, text in files.items() if name.startswith("Mo/")}
    flat = {name.removeprefix("Mo/"): text for name, text in files.items() if name.startswith("Mo/")}
    assert len(read(tmp_path, flat | nested, "auto")[0].data) == 6  # each recording once
    files |= {f"other/{name}": text for name, text in CASES["axivity"][0].items()}
    windows, notes = read(tmp_path, files, "auto")
    assert len(windows.data) == 9 and any(line.startswith("read as axivity") for line in notes)
    both = CASES["sensor_logger"][0] | CASES["axivity"][0]
    refused("files of axivity and of sensor_logger together", tmp_path, both, "auto")


def test_marks_and_pauses_of_the_apps(tmp_path):
    marks = "time,seconds_elapsed,text\n" + "".join(
        f"{EPOCH * 10**9 + s * 10**9},{s},{text}\n" for s, text in ((0, "walking"), (13, "upstairs"))
    )
    windows, _ = read(tmp_path, sensor_logger("TotalAcceleration", "Gyroscope", marks=marks), "auto")
    assert_begin(windows.data, every(0, 13), every(13, 19.9), near=(0.1, 0.04), within=0.06)
    assert windows.activity.tolist() == ["walking", "walking", "upstairs"]
    windows, _ = read(tmp_path, phyphox(PHYPHOX, pause=True), "auto")
    assert_begin(windows.data, every(0, 9), every(9, 19.9), near=(0.1, 0.04), within=0.06)


@pytest.mark.parametrize("gyroscope", ["", "time,seconds_elapsed,z,y,x\n"])
def test_a_gyroscopes_file_that_holds_nothing_is_none(tmp_path, gyroscope):
    files = sensor_logger("TotalAcceleration") | {"Gyroscope.csv": gyroscope}
    windows, _ = read(tmp_path, files, "auto")
    assert np.isnan(windows.data[..., 3:]).all()
    assert_begin(windows.data, every(0, 19.9))


def test_no_app_or_one_that_changed_is_refused(tmp_path):
    refused("is of none of androsensor, .*--look", tmp_path, {"a.csv": plain(A)}, "auto")
    refused("is of none of", tmp_path, {"notes.csv": "x,y\n1,2\n"}, "auto")
    refused("is of none of|does not hold|no table", tmp_path, {"notes.pdf": b"%PDF"}, "auto")
    files = sensor_logger("TotalAcceleration", "Gyroscope")
    files["Gyroscope.csv"] = files["Gyroscope.csv"].replace("z,y,x", "roll,yaw,pitch")
    refused("Gyroscope.csv looks like a gyroscope's, but not as sensor_logger writes it", tmp_path, files, "auto")
    header, _, rows = CASES["axivity"][0]["rec.csv"].partition("\n")
    refused(
        "rec.csv looks like a gyroscope's", tmp_path, {"rec.csv": f"{header.replace('d/s', 'mdps')}\n{rows}"}, "auto"
    )
    files = sensor_logger("Accelerometer", "Gyroscope")  # without gravity
    refused("is of none of", tmp_path, files, "auto")


# ------------------------------------------------------------------------------------------------------- --look


def described(lines):
    """The description among the lines of --look, as JSON."""
    text = "\n".join(lines)
    begin = text.index("{\n")
    return json.loads(text[begin : text.index("\n}", begin) + 2])


def unknown_files():
    t = clock(SECONDS)
    return {
        "plain": {"s.csv": plain(t)},
        "ms and g": {"s.csv": table_of(["timestamp", *NAMES[1:]], [f"{1000 * s:.0f}" for s in t], acc(t) / G, gyro(t))},
        "two files": {
            "acc.csv": table_of(["time", *"xyz"], A, acc(A)),
            "gyro.csv": table_of(["time", *"xyz"], W, gyro(W)),
        },
        "brackets": {
            "acc [1].csv": table_of(["time", *"xyz"], A, acc(A)),
            "gyro [1].csv": table_of(["time", *"xyz"], W, gyro(W)),
        },
        "semicolons": {"s.csv": plain(t, sep=";", point=",")},
        "dates": {"s.csv": table_of(["date", *NAMES[1:]], stamps(t), body(t))},
        "no header": {"s.csv": table_of(None, t, body(t))},
        "degrees": {
            "s.csv": table_of(
                ["time (s)", *(f"a{a} (g)" for a in "xyz"), *(f"w{a} (deg/s)" for a in "xyz")],
                t,
                acc(t) / G,
                gyro(t) * DEG,
            )
        },
        "events": {
            "s.csv": "sensor,time,x,y,z\n"
            + "".join(
                f"{name},{s:.4f},{','.join(map(str, x))}\n"
                for s, name, x in sorted(
                    [(s, "accelerometer", x.tolist()) for s, x in zip(A.tolist(), acc(A), strict=True)]
                    + [(s, "gyroscope", x.tolist()) for s, x in zip(W.tolist(), gyro(W), strict=True)]
                )
            )
        },
    }


@pytest.mark.parametrize("case", unknown_files())
def test_what_look_describes_gives_right_windows(tmp_path, case):
    folder = written(tmp_path / "raw dir", unknown_files()[case])
    before = sorted(path.stat().st_mtime_ns for path in folder.rglob("*"))
    lines = list(look(folder))
    assert before == sorted(path.stat().st_mtime_ns for path in folder.rglob("*"))
    assert not any(line.startswith("problem") for line in lines), lines
    windows, _ = read(tmp_path, folder, described(lines))
    assert_begin(windows.data, every(0, 19.9), near=(0.1, 0.04), within=0.06)
    assert any("Hz" in line for line in lines) and any("with gravity" in line for line in lines)


@pytest.mark.parametrize("case", [case for case, (_, number, _) in CASES.items() if number in (1, 5)])
def test_look_shows_a_known_apps_description(tmp_path, case):
    files, _, _ = CASES[case]
    folder = written(tmp_path / "raw", files)
    lines = list(look(folder))
    assert any(line.startswith(f"read as {case.partition(',')[0]}: ") for line in lines)
    assert not any(line.startswith("problem") for line in lines), lines
    mine, auto = read(tmp_path, folder, described(lines))[0], read(tmp_path, folder, "auto")[0]
    np.testing.assert_array_equal(mine.data, auto.data)


def test_look_says_what_is_odd(tmp_path):
    t = clock(SECONDS)
    still = np.array([0.1, 0.2, 9.7]) + 0.01 * linear(t)
    lines = "\n".join(look(written(tmp_path / "a", {"s.csv": table_of(NAMES, t, still / G, 90 + 90 * gyro(t))})))
    assert "in g, with gravity" in lines and "is it not in rad/s?" in lines
    lines = "\n".join(look(written(tmp_path / "b", {"s.csv": table_of(NAMES, t, still - [0, 0, 7], gyro(t))})))
    assert "is it without gravity?" in lines
    with pytest.raises(UserError, match="no three columns look like an acceleration"):
        list(look(written(tmp_path / "c", {"s.csv": "a,b\n1,2\n"})))


def test_look_from_the_command_line_draws(tmp_path, capsys):
    raw = written(tmp_path / "raw", {"Müller 1.csv": plain(clock(SECONDS))})
    run("--look", raw / "Müller 1.csv", "--figure", tmp_path / "x.png")
    said = capsys.readouterr().out
    assert "Müller 1.csv" in said and (tmp_path / "x.png").stat().st_size > 1000
    assert not list((tmp_path / "project").iterdir())
