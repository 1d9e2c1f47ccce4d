"""What tests of pages share."""

import json
from importlib import resources
from typing import Any


def data_of(html: str) -> Any:
    """The JSON block of a page, found as a browser does: up to the first end of a script."""
    return json.loads(html.partition('<script type="application/json" id="data">')[2].partition("</script")[0])


def serious_findings(tab: Any) -> list[str]:
    """What axe, the accessibility checker, finds serious or critical in a page as it is shown."""
    import axe_core_python as axe

    tab.evaluate(resources.files(axe).joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = tab.evaluate("axe.run()")
    assert len(found["passes"]) > 20
    return [
        f"{v['id']}: {node['html'][:100]}"
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ]
