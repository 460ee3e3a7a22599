"""Break the core on purpose, one operator or number at a time, and see whether the tests that name it notice.

    python benchmarks/mutations.py --count 60 --seed 0

Works on a copy of the repository in a temporary folder. A mutation survives where all tests of its module pass; it then
is a gap in the tests, or a change that changes nothing (an equivalent mutation): somebody has to look.
"""

from __future__ import annotations

import argparse
import ast
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import diffusers.models.modeling_utils  # noqa: F401 - loaded once for all mutations
import pytest
import torchdiffeq  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
TESTS = {  # by module: the test files that name what is in it
    "core/objective": ["objective"],
    "core/decay": ["gamma", "objective", "theory"],
    "core/gamma": ["gamma", "objective", "composition"],
    "core/energy": ["energy"],
    "core/guidance": ["guidance", "composition", "history"],
    "core/composition": ["composition", "guidance"],
    "analysis/exact_field": ["oracle"],
    "analysis/curvature": ["curvature", "arguments"],
    "analysis/gamma_estimate": ["readout"],
    "randomness": ["randomness"],
    "samplers/rules": ["rules", "samplers"],
    "samplers/descent": ["samplers", "per_frame", "frame_schedules"],
    "samplers/active": ["frame_schedules", "per_frame", "samplers"],
    "samplers/frame_schedule": ["frame_schedules"],
    "samplers/step_schedule": ["schedules"],
    "samplers/problem": ["sampler_contract", "ode"],
    "samplers/ode": ["ode", "sampler_contract"],
    "samplers/sde": ["sde", "sampler_contract"],
    "metrics/frechet": ["frechet"],
    "metrics/nearest": ["nearest"],
    "metrics/ood": ["ood"],
    "training/optim": ["optim"],
    "training/ema": ["ema"],
    "training/batches": ["mixing", "buckets"],
}


def places(tree: ast.AST) -> list[ast.AST]:
    """The nodes that can be changed: not in messages, docstrings or annotations."""
    found: list[ast.AST] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, (ast.Raise, ast.JoinedStr, ast.arguments, ast.AnnAssign)):
            return
        operator = node.ops[0] if isinstance(node, ast.Compare) else getattr(node, "op", None)
        number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
        if type(operator) in SWAPS or isinstance(operator, (ast.USub, ast.Not)) or number:
            found.append(node)
        for child in ast.iter_child_nodes(node):
            if child is not getattr(node, "returns", None):
                visit(child)

    visit(tree)
    return found


def change(node: ast.AST) -> None:
    """Change a node in place."""
    if isinstance(node, ast.Constant):
        node.value += 1
    elif isinstance(node, ast.Compare):
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
        node.operand = ast.UnaryOp(ast.Not(), node.operand) if isinstance(node.op, ast.Not) else node.operand
    else:
        node.op = SWAPS[type(node.op)]()


def survives(copy: Path, module: str, limit: float) -> bool:
    """Whether all tests of a module pass in the copy; they run in a fork, in which the libraries are loaded already."""
    child = multiprocessing.get_context("fork").Process(target=run_tests, args=(copy, TESTS[module]))
    child.start()
    child.join(limit)
    if child.is_alive():
        child.kill()
        child.join()
    return child.exitcode == 0


def run_tests(copy: Path, names: list[str]) -> None:
    """Exit with pytest's status for these test files of the copy."""
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    os.environ["PYTHONPATH"] = str(copy)  # for processes that tests start
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        files = [f"tests/test_{name}.py" for name in names]
        status = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *files])
    os._exit(int(status))


def main() -> None:
    """Print a line for each mutation, and how many survive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="how many mutations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=600, help="seconds for the tests of one mutation")
    options = parser.parse_args()
    draw, modules = random.Random(options.seed), list(TESTS)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__"))
        alive = 0
        for index in range(options.count):
            module = modules[index % len(modules)]
            file = copy / "eqm_video" / f"{module}.py"
            source = file.read_text()
            tree = ast.parse(source)
            node = draw.choice(places(tree))
            before = ast.get_source_segment(source, node)
            change(node)
            file.write_text(ast.unparse(tree))
            start, lives = time.time(), survives(copy, module, options.limit)
            file.write_text(source)
            alive += lives
            word = "SURVIVES" if lives else "noticed"
            what = f"{before}  ->  {ast.unparse(node)}".replace("\n", " ")
            print(f"{word:9} {module}.py:{node.lineno}  {what}  ({time.time() - start:.0f} s)", flush=True)
    print(f"{alive} of {options.count} mutations survive")


if __name__ == "__main__":
    main()
