"""The pictures of the site: drawn the same each time, true to the runs, and to be read by everybody."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

pytest.importorskip("contourpy")
pytest.importorskip("sklearn")

import optimizers
from docs.pictures import Picture, losses, paths, pictures, rule_pictures
from docs.pictures.axes import Axis, written
from docs.pictures.contours import contours
from docs.pictures.digits import first_digits
from docs.pictures.entries import MOMENTUM, PROBLEMS, all_entries, companions, rate
from docs.pictures.markup import number, plain, set_maths, spoken, width
from docs.pictures.strokes import thinned
from docs.pictures.surfaces import BANANA, SADDLE, SURFACES, VALLEY, Surface
from docs.pictures.svg import Chart, Line
from optimizers.experiments.recipes import rules
from optimizers.experiments.schedules import known_schedules, rectification_curves

CSS = (Path(__file__).parents[1] / "docs" / "static" / "pictures.css").read_text(encoding="utf-8")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def by_page() -> dict[str, list[Picture]]:
    return rule_pictures()


@pytest.fixture(scope="module")
def all_pictures(by_page: dict[str, list[Picture]]) -> list[Picture]:
    return [*pictures().values(), *(picture for group in by_page.values() for picture in group)]


@pytest.fixture(scope="module")
def walks() -> dict[str, list[list[tuple[float, float]]]]:
    return {name: paths.walk(e, [rate(name, s.name) for s in SURFACES]) for name, e in all_entries().items()}


@pytest.fixture(scope="module")
def curves() -> dict[str, list[float]]:
    names = list(all_entries())
    trained = losses.train(list(all_entries().values()), [rate(name, "digits") for name in names])
    return dict(zip(names, trained, strict=True))


# ## All pictures


def test_two_calls_give_the_same_bytes(all_pictures: list[Picture]) -> None:
    again = [*pictures().values(), *(picture for group in rule_pictures().values() for picture in group)]
    assert again == all_pictures


def test_drawing_leaves_the_random_numbers_and_the_threads_of_torch_alone() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    rule_pictures()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_every_rule_has_three_paths_and_a_loss_under_the_name_of_its_page(by_page: dict[str, list[Picture]]) -> None:
    assert set(by_page) == {rule.__module__.rpartition(".")[2] for rule in rules().values()}
    for page, group in by_page.items():
        assert [picture.name for picture in group] == [f"{page}-{problem}" for problem in PROBLEMS]


def test_pictures_are_xml_with_a_name_and_a_description(all_pictures: list[Picture]) -> None:
    for picture in all_pictures:
        root = ET.fromstring(picture.svg)
        title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
        assert root.get("role") == "img"
        assert title is not None
        assert description is not None
        assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert title.text
        assert description.text == picture.alt
        assert picture.alt.strip()
        assert picture.caption.strip()


def test_ids_are_unique_among_all_pictures(all_pictures: list[Picture]) -> None:
    ids = [name for picture in all_pictures for name in re.findall(r'\bid="([^"]*)"', picture.svg)]
    assert len(ids) == 2 * len(all_pictures) == len(set(ids))


def test_pictures_have_no_colours_and_no_numbers_that_are_none(all_pictures: list[Picture]) -> None:
    for picture in all_pictures:
        drawn = re.sub(r"<(title|desc|text)\b.*?</\1>", "", picture.svg)
        assert not re.search(r"""["M vhm-](nan|inf)|#|rgb|style=|\de-\d""", drawn), picture.name


def test_no_text_of_a_legend_leaves_its_picture_or_overlaps_another(all_pictures: list[Picture]) -> None:
    for picture in all_pictures:
        root = ET.fromstring(picture.svg)
        across = float(root.attrib["width"])
        boxes = [
            (text.get("y"), float(text.attrib["x"]) - 32, float(text.attrib["x"]) + width("".join(text.itertext()), 13))
            for text in root.iter(f"{SVG}text")
            if text.get("class") == "picture-name"
        ]
        assert all(0 <= left and right <= across for _, left, right in boxes), picture.name
        for one, other in pairwise(boxes):
            assert one[0] != other[0] or one[2] < other[1], picture.name


def test_a_page_shows_no_rule_twice_and_the_companions_alike() -> None:
    for name in all_entries():
        shown = (name, *companions(name))
        assert len(set(shown)) == 3


# ## The runs


@pytest.mark.parametrize("surface", SURFACES, ids=lambda surface: surface.name)
def test_gradients_curvatures_and_minima_of_the_surfaces_are_right(surface: Surface) -> None:
    for point in (surface.start, (0.3, -0.2), *surface.minima):
        x, y = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in point)
        grads = torch.autograd.grad(surface.value(x, y), (x, y), create_graph=True)
        assert surface.gradient(*point) == pytest.approx([g.item() for g in grads])
        second = [torch.autograd.grad(g, v, retain_graph=True)[0] for g, v in zip(grads, (x, y), strict=True)]
        assert surface.curvature(*point) == pytest.approx([h.item() for h in second])
    for minimum in surface.minima:
        assert surface.gradient(*minimum) == pytest.approx((0, 0))
        assert min(surface.curvature(*minimum)) > 0


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("SGD", lambda p, lr: optimizers.SGD(p, lr=lr)),
        (MOMENTUM, lambda p, lr: optimizers.SGD(p, lr=lr, momentum=0.9)),
        ("Adam", lambda p, lr: optimizers.Adam(p, lr=lr, betas=(0.9, 0.99))),
        ("Muon", lambda p, lr: optimizers.Muon(p, lr=lr)),
        ("AdamWarmup", lambda p, lr: optimizers.AdamWarmup(p, lr=lr, betas=(0.9, 0.99), warmup=6)),
    ],
)
def test_a_path_is_the_one_that_the_library_takes(name: str, make, walks) -> None:
    for surface, path in zip(SURFACES, walks[name], strict=True):
        point = torch.tensor([surface.start], dtype=torch.float64, requires_grad=True)
        optimizer = make([point], rate(name, surface.name))
        for _ in range(paths.STEPS):
            optimizer.zero_grad()
            surface.value(*point[0]).backward()
            optimizer.step()
        assert path[-1] == pytest.approx(point[0].tolist(), rel=1e-3, abs=1e-4)


def test_no_path_leaves_its_picture(walks) -> None:
    for paths_of_one in walks.values():
        for surface, path in zip(SURFACES, paths_of_one, strict=True):
            assert all(surface.x[0] <= x <= surface.x[1] and surface.y[0] <= y <= surface.y[1] for x, y in path)


def test_the_losses_are_those_of_training_one_network_by_itself(curves) -> None:
    (alone,) = losses.train([all_entries()["Adam"]], [rate("Adam", "digits")])
    assert curves["Adam"] == pytest.approx(alone, rel=1e-3)
    images, labels = first_digits(losses.ROWS)
    generator = torch.Generator().manual_seed(0)
    shapes = ((64, losses.HIDDEN), (losses.HIDDEN, 10))
    first, second = (torch.randn(*s, generator=generator).mul_((2 / s[0]) ** 0.5).requires_grad_() for s in shapes)
    optimizer = optimizers.Adam([first, second], lr=rate("Adam", "digits"), betas=(0.9, 0.99))

    def loss(rows: slice | torch.Tensor = slice(None)) -> torch.Tensor:
        return torch.nn.functional.cross_entropy((images[rows] @ first).relu() @ second, labels[rows])

    seen = [loss().item()]
    for _ in range(2):
        for rows in torch.randperm(losses.ROWS, generator=generator).split(losses.BATCH):
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()
            seen.append(loss().item())
    assert alone[:6] == pytest.approx(seen[: 5 * losses.LOOK_EVERY + 1 : losses.LOOK_EVERY], rel=1e-3)


def test_the_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images, targets = first_digits(100)
    assert torch.equal(images, torch.tensor(pixels[:100] / 16, dtype=torch.float32))
    assert targets.tolist() == labels[:100].tolist()


# ## The words


def test_alt_texts_say_who_arrives_when_and_how_far_the_others_are(by_page, walks) -> None:
    for name, entry in all_entries().items():
        if name == MOMENTUM:
            continue
        for index, surface in enumerate(SURFACES):
            alt = by_page[entry.page][index].alt
            for shown in (name, *companions(name)):
                near = [surface.distance(point) < 0.1 for point in walks[shown][index]]
                if near[-1]:
                    step = len(near) - 1 - near[::-1].index(False) + 1
                    assert f"{shown} from step {step}" in alt
                else:
                    assert f"{shown} ends {surface.distance(walks[shown][index][-1]):.2g} away." in alt


def test_alt_texts_name_the_final_losses_lowest_first(by_page, curves) -> None:
    ends = {name: curve[-1] for name, curve in curves.items()}
    for name, entry in all_entries().items():
        if name != MOMENTUM:
            ranked = sorted((name, *companions(name)), key=ends.__getitem__)
            said = ", ".join(f"{shown} {ends[shown]:.2g}" for shown in ranked)
            assert by_page[entry.page][-1].alt.endswith(f"At step {losses.STEPS}: {said}.")


def test_captions_hold_the_calls_that_make_the_optimizers(by_page: dict[str, list[Picture]]) -> None:
    for group in by_page.values():
        for picture in group:
            calls = re.findall(r"`(\w+)\((.*?)\)`", picture.caption)
            assert len(calls) == 3
            for rule, arguments in calls:
                assert eval(f"optimizers.{rule}([torch.zeros(2, 2)], {arguments})")


def test_the_words_of_the_schedules_are_those_of_the_rules() -> None:
    drawn = pictures()
    for curve in known_schedules():
        assert f"{spoken(curve.name)} rises to {plain(max(curve.y))} near step" in drawn["schedules.svg"].alt
    for curve in rectification_curves():
        first = next(step for step, term in zip(curve.x, curve.y, strict=True) if not math.isnan(term))
        assert f"{spoken(curve.name)} it begins at step {first}" in drawn["rectification.svg"].alt


# ## Colours


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--picture-([\w-]+): (#[0-9a-f]{6});", block))


def themes() -> Iterator[dict[str, str]]:
    light, media, dark = re.findall(r":root[^{]*\{([^}]*)\}", CSS)
    assert colours(media) == colours(dark)
    yield from (colours(light), colours(dark))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_text_and_lines_stand_out_in_both_themes() -> None:
    for theme, ground in zip(themes(), ("#ffffff", "#15181c"), strict=True):
        assert theme["ground"] == ground
        for name in ("ink", "muted"):
            assert contrast(theme[name], ground) >= 4.5, name
        for name in ("axis", *(name for name in theme if name.startswith("series-"))):
            assert contrast(theme[name], ground) >= 3, name


def test_every_class_has_its_look_and_every_series_a_stroke_of_its_own(all_pictures: list[Picture]) -> None:
    used = {name for picture in all_pictures for name in re.findall(r'class="([^"]*)"', picture.svg)}
    for name in used - {"picture-name"}:
        assert re.search(rf"\.{name}\b", CSS), name
    dashes = re.findall(r"\.series-\d \{[^}]*stroke-dasharray: ([^;]*);", CSS)
    assert len(dashes) == len(set(dashes)) == sum(name.startswith("series-") for name in colours(CSS)) - 1


# ## The parts


@pytest.mark.parametrize(
    ("axis", "most", "ticks"),
    [
        (Axis(0, 100), 6, [0, 20, 40, 60, 80, 100]),
        (Axis(-1.6, 1.6), 6, [-1, 0, 1]),
        (Axis(0, 7e-4), 6, [0, 2e-4, 4e-4, 6e-4]),
        (Axis(1, 10_000, log=True), 6, [1, 10, 100, 1000, 10_000]),
        (Axis(0.02, 4, log=True), 8, [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]),
        (Axis(1e-9, 10, log=True), 6, [1e-9, 1e-7, 1e-5, 1e-3, 1e-1, 10]),
    ],
)
def test_ticks_are_round_and_few(axis: Axis, most: int, ticks: list[float]) -> None:
    assert axis.ticks(most) == pytest.approx(ticks)


def test_an_axis_places_its_ends_and_what_has_no_place() -> None:
    assert (Axis(2, 4).place(2), Axis(2, 4).place(4)) == (0, 1)
    assert Axis(0.01, 100, log=True).place(1) == pytest.approx(0.5)
    assert math.isnan(Axis(0.01, 100, log=True).place(0))


def test_numbers_and_names_are_written_for_people() -> None:
    assert [written(value) for value in (10_000, -0.5, 0.0002, 0, 1e-7)] == [
        "10\u202f000",
        "−0.5",
        "0.0002",
        "0",
        "1e−7",
    ]
    assert [number(value) for value in (1.04, -0.01, 2.0, 100.25)] == ["1", "0", "2", "100.2"]
    assert [plain(value) for value in (6e-5, 0.000699, 1.0, 12.34)] == ["0.00006", "0.0007", "1", "12"]
    assert spoken(r"$\beta_2$ = 0.9") == "β2 = 0.9"
    text = ET.fromstring(f"<text>{set_maths('Noam, $d_{model}$ = 8 & <')}</text>")
    assert "".join(text.itertext()) == "Noam, dmodel = 8 & <"


def test_a_line_has_a_gap_where_there_is_no_number() -> None:
    line = Line("a", [0, 1, 2, 3, 4], [1, 1, math.nan, 0, 0], 1)
    svg = Chart("name", "title", "alt", Axis(0, 4), Axis(0, 1), [line], size=(40, 10)).svg()
    assert 'class="series-1" d="M0 0 10 0M30 10 40 10"' in svg


def test_thinning_leaves_out_only_what_is_on_the_way() -> None:
    assert thinned([(0, 0), (1, 0), (2, 0), (2, 5), (2, 0)]) == [(0, 0), (2, 0), (2, 5), (2, 0)]
    assert thinned([(3, 3)]) == [(3, 3)]


@pytest.mark.parametrize("surface", [VALLEY, BANANA, SADDLE], ids=lambda surface: surface.name)
def test_contours_lie_at_their_levels(surface: Surface) -> None:
    for line in contours(surface):
        for point in line:
            nearest = min(surface.levels, key=lambda level: abs(surface.value(*point) - level))
            assert surface.value(*point) == pytest.approx(nearest, rel=0.1, abs=0.05)
