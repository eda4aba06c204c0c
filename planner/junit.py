"""A comparison with a baseline as JUnit XML, the form in which CI systems show tests: a case for each figure."""

from xml.etree.ElementTree import Element, SubElement, indent, tostring

from planner.drift import Drift, shown


def junit(drift: Drift, where: str) -> str:
    """The document: figures that are slower than allowed failed, those without a counterpart were skipped.

    >>> print(junit(Drift((), (), (), 0.1), "baseline.yaml"))
    <?xml version="1.0" encoding="utf-8"?>
    <testsuites>
      <testsuite name="planner profile hardware --check baseline.yaml" tests="0" failures="0" errors="0" skipped="0" />
    </testsuites>
    <BLANKLINE>
    """
    suites = Element("testsuites")
    suite = SubElement(
        suites,
        "testsuite",
        name=f"planner profile hardware --check {where}",
        tests=str(len(drift.moves) + len(drift.left_out)),
        failures=str(len(drift.slower)),
        errors="0",
        skipped=str(len(drift.left_out)),
    )
    for move in drift.moves:
        case = SubElement(suite, "testcase", classname=move.curve, name=f"{move.at} {move.by}")
        told = (
            f"{shown(move.baseline, move.unit)} -> {shown(move.now, move.unit)}: {move.ratio:.3f} times as long,"
            f" allowed {move.allowed:.3f} ({move.tolerance:.3g} and a spread of {move.spread:.3g})"
        )
        if move.verdict == "slower":
            SubElement(case, "failure", type="slower", message=told)
        else:
            SubElement(case, "system-out").text = told
    for name in drift.left_out:
        curve, _, size = name.rpartition(" at ")
        case = SubElement(suite, "testcase", classname=curve, name=size)
        SubElement(case, "skipped", message="only one of the profiles has this figure")
    indent(suites)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{tostring(suites, encoding="unicode")}\n'
