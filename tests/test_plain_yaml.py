"""Recipes mean what a reader sees in them: numbers, words, keys; whatever is endless or hostile is one sentence."""

from __future__ import annotations

import os
import random
import tracemalloc
from pathlib import Path

import pytest

from eqm_video.errors import UserError, short
from eqm_video.training import plain_yaml
from eqm_video.training.config import load_config, to_yaml

ROOT = Path(__file__).resolve().parent.parent
CASES = ROOT.parent / "shared" / "cases"


def refusal(text: str | bytes, tmp_path: Path, *overrides: str) -> str:
    """The sentence with which a recipe is refused."""
    path = tmp_path / "r.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    return is_sentence(str(caught.value))


def is_sentence(message: str) -> str:
    assert "\n" not in message and len(message) < 700, message[:1000]
    return message


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("train:\n  lr: 1e-4\n  lr: 5e-3\n", (2, 3)),
        ("train: {steps: 3}\nmodel: {}\ntrain: {lr: 1}\n", (1, 3)),
        ("objective:\n  decay:\n    kind: truncated\n    a: 0.5\n    'a': 0.6\n", (4, 5)),
        ("gamma: {kind: context,\n patterns: [prefix],\n patterns: [ends]}\n", (2, 3)),
        ("data: &d {size: 64}\ntrain:\n  <<: {steps: 3}\n  <<: {steps: 4}\n", (3, 4)),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(text, lines, tmp_path) -> None:
    said = refusal(text, tmp_path)
    assert "twice" in said and f"line {lines[0]} and in line {lines[1]}" in said


def test_overrides_are_held_to_the_same(tmp_path) -> None:
    assert "twice" in refusal("", tmp_path, "train={steps: 1, steps: 2}")
    assert load_config(None, ["train.steps=1", "train.steps=2"]).train.steps == 2  # as with every option


@pytest.mark.parametrize("place", ["recipe", "override"])
@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.steps", "1:30", None),
        ("train.steps", "1:30:00", None),
        ("train.lr", "1:30.5", None),
        ("train.steps", "0100", None),
        ("train.lr", "010", None),
        ("train.steps", "-0100", None),
        ("train.batch_size", "1e21", None),
        ("train.steps", "1e23", None),
        ("train.steps", "2.5", None),
        ("train.steps", "2026-01-01", None),
        ("train.steps", "9" * 5000, None),
        ("train.lr", "9" * 5000, None),
        ("train.lr", ".inf", None),
        ("train.lr", "-.inf", None),
        ("train.lr", ".nan", None),
        ("train.lr", "1e400", None),
        ("train.weight_decay", "1e-400", None),
        ("train.steps", "yes", None),
        ("train.steps", "1__0", None),
        ("train.steps", "10%", None),
        ("train.steps", "1,000", None),
        ("data.flip", "1", None),
        ("data.flip", "y", None),
        ("run.dir", "null", None),
        ("train.steps", "1e3", 1000),
        ("train.steps", "1_000", 1000),
        ("train.steps", "0x10", 16),
        ("train.steps", "+7", 7),
        ("train.steps", "12.0", 12),
        ("train.seed", str(2**53 + 1), 2**53 + 1),
        ("train.lr", "1e-4", 1e-4),
        ("train.lr", "1E-4", 1e-4),
        ("train.lr", ".5", 0.5),
        ("train.lr", "5.", 5.0),
        ("train.lr", "3", 3.0),
        ("data.flip", "on", True),
        ("data.flip", "No", False),
        ("train.mixed_precision", "no", "no"),
        ("train.clip_norm", "null", None.__class__),
        ("train.clip_norm", "~", None.__class__),
        ("track.name", "yes", "yes"),
        ("track.name", "off", "off"),
        ("track.name", "2026-01-01", "2026-01-01"),
        ("track.name", "12:30:05", "12:30:05"),
        ("track.name", "0100", "0100"),
        ("track.name", "1e21", "1e21"),
        ("track.name", "1_000", "1_000"),
        ("data.root", "1.10", "1.10"),
        ("run.dir", "no", "no"),
    ],
)
def test_values_are_what_a_reader_sees_or_refused(place, key, text, value, tmp_path) -> None:
    section, name = key.split(".")
    recipe, overrides = (f"{section}: {{{name}: {text}}}", []) if place == "recipe" else ("", [f"{key}={text}"])
    if place == "recipe" and text == "1,000":
        return  # two entries of a flow mapping
    if value is None and not (place == "override" and key == "run.dir"):
        assert key in refusal(recipe, tmp_path, *overrides)
        return
    (tmp_path / "r.yaml").write_text(recipe)
    got = getattr(getattr(load_config(tmp_path / "r.yaml", overrides), section), name)
    expected = "null" if value is None else None if value is type(None) else value
    assert got == expected and type(got) is type(expected)
    (tmp_path / "again.yaml").write_text(to_yaml(load_config(tmp_path / "r.yaml", overrides)))
    assert getattr(getattr(load_config(tmp_path / "again.yaml"), section), name) == expected


def test_advice_is_given_where_yaml_would_read_another_number(tmp_path) -> None:
    assert "base 8" in refusal("train: {steps: 0100}", tmp_path) and "base 60" in refusal(
        "train: {steps: 1:30}", tmp_path
    )


def test_aliases_and_merges_count_as_what_they_stand_for(tmp_path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("held_out: {gammas: &g [0.5, 0.9]}\ntrain: {<<: {steps: 7, lr: 2}, lr: 3, betas: *g}\n")
    config = load_config(path)
    assert config.train.steps == 7 and config.train.lr == 3.0 and config.train.betas == (0.5, 0.9)
    assert plain_yaml.parse("{<<: [{a: 1, b: 2}, {b: 3, c: 4}], c: 5}", "x") == {"a": "1", "b": "2", "c": "5"}
    lists = [
        "a: &a [x,x,x,x,x,x,x,x,x]",
        *(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    ]
    tracemalloc.start()
    assert "aliases" in refusal("\n".join([*lists, "train: {steps: *i}"]), tmp_path)
    assert "alias" in refusal("train: {steps: 3}\nmodel: &a {preset: *a}\n", tmp_path)
    deep = "a: &a [x]\n" + "".join(f"b{k}: &b{k} [*{'a' if k == 0 else f'b{k - 1}'}]\n" for k in range(50))
    assert "aliases" in refusal(deep, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6, "the text of the value has 9^9 items"


@pytest.mark.parametrize("name", ["anchors_bomb.yaml", "self.yaml", "dup.yaml"])
def test_the_collected_cases_are_sentences(name) -> None:
    if not CASES.is_dir():
        pytest.skip("needs the inputs in ../shared/cases, which this checkout does not have beside it")
    with pytest.raises(UserError, match=name) as caught:
        load_config(CASES / name)
    is_sentence(str(caught.value))


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 3000,
        "{" * 3000,
        "- " * 3000,
        "? " * 3000,
        "train:\n\tsteps: 3\n",
        "train: {steps: 3}\n---\ntrain: {steps: 4}\n",
        "train: {steps: 3}\0",
        "- 1",
        "3",
        "[a]: 3",
        "a: *b",
        "train: {<<: 3}",
        "a: !!python/object/apply:os.system [ls]",
        "track: {name: !!binary aGVsbG8=}",
        "a: !!set {b}",
        "a" * 100_000 + ": 3",
        "train: {steps: [" + "1," * 9000 + "]}",
        "track: {to: [" + "wandb," * 2000 + "]}",
        "held_out: {gammas: [" + "3," * 900 + "]}",
        "run: {dir: " + "a" * 100_000 + "}",
        'run: {dir: "a\\0b"}',
        'run: {dir: "\\ud800"}',
        "\n".join(f"key{k}: {k}" for k in range(11_000)),
        b"run: {dir: caf\xe9}",
        "train: {steps: 3}".encode("utf-16"),
        "gamma: {kind: [shared]}",
        "gamma: {kind: {a: b}}",
        "gamma: {kind: context, patterns: [" + "prefix," * 800 + "x]}",
    ],
    ids=lambda text: str(text[:16]),
)
def test_hostile_recipes_are_one_sentence(text, tmp_path) -> None:
    refusal(text, tmp_path)


def test_a_byte_order_mark_and_an_empty_file_are_fine(tmp_path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbftrain: {steps: 5}\r\n")
    assert load_config(tmp_path / "r.yaml").train.steps == 5
    for empty in ("", "# nothing\n", "---\n", "null"):
        (tmp_path / "r.yaml").write_text(empty)
        assert load_config(tmp_path / "r.yaml") == load_config()


def test_what_is_no_small_file_is_refused_and_not_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**30)
    for path, word in (
        (tmp_path, "folder"),
        (tmp_path / "pipe", "pipe"),
        ("/dev/zero", "device"),
        (tmp_path / "large", "256 KiB"),
        (tmp_path / "none", "is no file"),
        ("a\0b", "is no file"),
        ("x" * 5000, "too long|is no file"),
    ):
        with pytest.raises(UserError, match=word) as caught:
            load_config(path)
        assert "\n" not in str(caught.value)


def test_the_text_of_a_value_is_never_built() -> None:
    value: list = [0]
    for _ in range(200):
        value = [value] * 9
    assert len(short(value)) <= 80 and len(short({"a" * 10_000: value})) <= 80
    assert short(10**5000).startswith("a whole number of") and short("x" * 10**6).count("x") < 80
    assert short(3) == "3" and short("many") == "'many'" and short([0.5, 1.0]) == "[0.5, 1.0]"


@pytest.mark.parametrize(
    "override",
    [
        "frames=1e8",
        "data.frame_interval=1e9",
        "data.size=3200000",
        "data.workers=1e8",
        "train.batch_size=1e12",
        "codec.chunk=1e12",
        "model.num_labels=1e9",
        "sampler.steps=1e9",
        "preview.samples=1e6",
        "held_out.clips=1e9",
        "data.buckets=99999999x3",
        "data.buckets=3x99999999",
        "data.reference_fps=1e300",
    ],
)
def test_values_beyond_any_use_are_refused_with_the_most(override) -> None:
    with pytest.raises(UserError, match=r"the most is [0-9,]+|from [01] to [0-9]+$|at most [0-9]+$") as caught:
        load_config(None, [override])
    assert is_sentence(str(caught.value))


def mutated(text: str, random_: random.Random) -> str:
    """A recipe with a few of its pieces cut, doubled, swapped, or replaced by something hostile."""
    pieces = ["[", "]", "{", "}", ":", "- ", "*a", "&a ", "<<: ", "!!binary ", "\t", "\n", "'", '"', "? ", "|\n", ">\n"]
    pieces += [
        "0100",
        "1:30",
        "1e21",
        "9" * 300,
        ".nan",
        ".inf",
        "null",
        "~",
        "---\n",
        "\0",
        "\ud800",
        "\ufeff",
        "é",
        "%",
    ]
    for _ in range(random_.randint(1, 6)):
        place, other = sorted((random_.randrange(len(text) + 1), random_.randrange(len(text) + 1)))
        text = random_.choice(
            [
                text[:place] + random_.choice(pieces) + text[place:],
                text[:place] + text[other:],
                text[:other] + text[place:other] + text[other:],
                text[:place] + chr(random_.randrange(32, 0x2FF)) + text[place + 1 :],
                text[:place] + random_.choice(pieces) * random_.randint(1, 50) + text[other:],
            ]
        )
    return text


def test_mutated_recipes_are_read_or_one_sentence(tmp_path) -> None:
    random_ = random.Random(0)
    recipes = [path.read_text() for path in sorted((ROOT / "configs").glob("*.yaml"))]
    recipes = ["\n".join(line for line in text.splitlines() if not line.startswith("#")) for text in recipes]
    path, read = tmp_path / "r.yaml", 0
    for _ in range(400):
        text = mutated(random_.choice(recipes)[:600], random_)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            config = load_config(path)
        except UserError as error:
            is_sentence(str(error))
            continue
        read += 1
        path.write_text(to_yaml(config))
        assert load_config(path) == config
    assert 5 < read < 350
