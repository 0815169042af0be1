"""The table of the generate benchmark."""

from benchmarks.generate_table import table


def test_one_line_a_quantity_and_one_column_a_client() -> None:
    rows = [
        {"name": "A span: ours", "value": 4.234, "unit": "s", "bar": 4.4, "ok": True},
        {"name": "A span: sdk", "value": 10.2, "unit": "s", "bar": None, "ok": None},
        {"name": "20 kills: rows lost", "value": 1, "unit": "rows", "bar": 0, "ok": False},
        {"name": "A span: ours", "value": 4.1, "unit": "s", "bar": 4.4, "ok": True},
    ]
    head, _, span, kills = table(rows)
    assert head == "| test | ours | aiohttp | sdk | curator | datadesigner | distilabel | bar |"
    assert span == "| A span, s | 4.10 |  | 10.2 |  |  |  | 4.40: met |", "the later row counts"
    assert kills == "| 20 kills: rows lost | 1 |  |  |  |  |  | 0: **missed** |"
