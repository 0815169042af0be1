"""The verdict on a candidate, from what came out of the sandbox: values are compared here, not in there."""

import json
import signal

from distill.sandbox.checks import Check, canonical, truth
from distill.sandbox.types import SandboxVerdict


def _outcomes(said: object) -> dict[int, list[object]]:
    """The first outcome of each check (-1: of the candidate as a whole); lines of another form do not count."""
    found: dict[int, list[object]] = {}
    for line in str(said).split("\n"):
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            continue
        match message:
            case [int() as index, [str(), *_] as outcome]:
                found.setdefault(index, outcome)
    return found


def _holds(check: Check, outcome: list[object]) -> bool:
    """A test holds if its process said so; of a call, the value decides."""
    try:
        match outcome:
            case ["held"]:
                return check.kind == "test"
            case ["value", tree] if check.kind == "equal":
                return canonical(tree) == check.expected
            case ["value", tree] if check.kind in ("true", "false"):
                return truth(tree) is (check.kind == "true")
    except RecursionError:  # nested as deep as no expected value is
        return False
    return False


def judge(report: dict[str, object], checks: list[Check]) -> SandboxVerdict:
    """The verdict. The candidate is heard on its calls, the process of the tests on the tests, and neither on more."""
    of_candidate, of_tests = _outcomes(report["candidate"]), _outcomes(report["tests"])
    passed = 0
    first_bad = of_candidate.get(-1)
    for index, check in enumerate(checks):
        outcome = (of_tests if check.kind == "test" else of_candidate).get(index)
        if outcome is not None and _holds(check, outcome):
            passed += 1
        elif first_bad is None and outcome is not None:
            first_bad = outcome
    ok = passed == len(checks) and not report["stopped"]
    seconds = report["seconds"]
    assert isinstance(seconds, float)
    return SandboxVerdict(ok, passed, len(checks), "passed" if ok else _reason(report, first_bad), seconds)


def _reason(report: dict[str, object], first_bad: list[object] | None) -> str:
    if report["stopped"]:
        return str(report["stopped"])
    match first_bad:
        case ["value" | "failed" | "held", *_]:
            return "failed"
        case ["missing"]:
            return "no function"
        case ["error", str() as text]:
            return f"error: {text}"
        case [str() as kind, *_] if kind in ("forbidden", "memory"):
            return kind
    if report["signal"]:
        return "memory" if report["signal"] == signal.SIGKILL else f"error: killed by signal {report['signal']}"
    return "error: ended before its tests did"
