"""What tells the rows of a table apart, and what stands below it."""

from __future__ import annotations

from sanrobust.tables import paper_tables, to_csv, to_markdown, to_text
from table_cases import (CW, MIXED, markdown_line, pgd_row, pgd_table, rotation_row,
                         rotation_table)


def test_a_tag_shows_only_where_it_tells_two_rows_apart() -> None:
    alone = rotation_table([rotation_row("san10-pair.digits")])
    both = rotation_table([rotation_row("san10-pair.digits"), rotation_row("san10-pair.other")])
    assert "| SAN10-pair |" in to_markdown(alone)
    assert "| SAN10-pair (digits) |" in to_markdown(both)


def test_rows_of_one_model_say_in_which_setting_they_differ() -> None:
    text = to_markdown(rotation_table([rotation_row("m", seed=0), rotation_row("m", seed=1)]))
    assert "| m (seed 0) |" in text and "| m (seed 1) |" in text


def test_identical_runs_are_told_apart_by_their_id_or_number() -> None:
    by_id = to_markdown(rotation_table([rotation_row("m", run_id="a"),
                                        rotation_row("m", run_id="b")]))
    by_number = to_markdown(rotation_table([rotation_row("m"), rotation_row("m")]))
    assert "| m (run\\_id a) |" in by_id and "| m (2) |" in by_number


def test_two_runs_of_one_model_with_one_budget_each_share_a_line() -> None:
    table = pgd_table([pgd_row("m", (8, 4, 2), run_id="a"), pgd_row("m", (8, 2, 4), run_id="b")])
    assert len(markdown_line(table, "m")) == 6 and "–" not in markdown_line(table, "m")


def test_runs_with_other_settings_never_share_a_line() -> None:
    table = pgd_table([pgd_row("m", (8, 4, 2), loss="ce"), pgd_row("m", (8, 2, 4), loss="dlr")])
    assert markdown_line(table, r"m (loss dlr)")[2:] == ["–", "–", "30.0", "40.0"]


def test_settings_given_as_lists_are_compared_by_value() -> None:
    table = pgd_table([pgd_row("m", (8, 4, 2), parts=[1, 2]),
                       pgd_row("m", (8, 2, 4), parts=[1, 2])])
    assert len(markdown_line(table, "m")) == 6
    assert '"[1, 2]"' in to_csv(table)


def test_caption_says_what_the_numbers_rest_on() -> None:
    text = to_markdown(rotation_table([
        rotation_row("resnet26", failed=2, weights="0" * 64, seed=0),
        rotation_row("san10-pair", n=100, weights="digits", seed=1)])).split("\n\n")[0]
    assert "Data: digits, 200 images (ResNet26); 100 images (SAN10-pair)." in text
    assert "Images that failed: 2 of 202 (ResNet26)." in text
    assert "Weights: 000000000000 (ResNet26); digits (SAN10-pair)." in text
    assert "Not the same in all rows: seed: 0 (ResNet26); 1 (SAN10-pair)." in text


def test_caption_gives_the_range_of_the_half_widths() -> None:
    assert "95 % Wilson intervals: 5.0 points." in to_markdown(pgd_table([pgd_row("m")]))
    row = pgd_row("m", top1_adv_low=37.0, top1_adv_high=43.0)
    assert "95 % Wilson intervals: 3.0 to 5.0 points." in to_markdown(pgd_table([row]))


def test_paper_tables_claim_no_intervals_and_no_iterate() -> None:
    for table in paper_tables().values():
        text = to_markdown(table)
        assert "Wilson" not in text and "last iterate" not in text and "50000 images" in text


def test_markdown_lists_intervals_and_the_other_definitions() -> None:
    text = to_markdown(pgd_table([pgd_row("m")]))
    assert "| m | n = 2, ε = 8, ρ = 4 | 80.0 [75.0, 85.0] | 30.0 [25.0, 35.0] | 31.0 " in text
    assert "| 60.0 [55.0, 65.0] |" in text


def test_a_caption_says_what_each_attack_did() -> None:
    words = " ".join(to_text(MIXED).split())
    assert words.count("Attack (") == 3 and "Robustness to adversarial attacks." in words
    assert "Attack (PGD): White-box PGD in the L-inf ball, targeted at a random wrong" in words
    assert "c = 1, steps = 100" in words and "Not the same in all rows" not in words
    alone = pgd_table([pgd_row("a", (None, None, None), **CW)])
    assert "white-box targeted PGD" not in to_markdown(alone)
    assert to_markdown(alone).startswith("Robustness to CW")
    assert "1/255" not in to_markdown(alone).partition("Data:")[0]


def test_a_name_of_many_letters_stays_out_of_the_rows() -> None:
    many = {f"option{number}": str(number) for number in range(30)}
    rows = [pgd_row("a", (None, None, None), **{**CW, "options": options})
            for options in (many, {**many, "option3": "4"}, {})]
    lines = to_text(pgd_table(rows), width=200).partition("Robustness")[0].splitlines()
    assert max(map(len, lines)) < 120
