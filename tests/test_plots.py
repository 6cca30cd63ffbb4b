import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from src import plots
from src.data.features import frame_times, mel_frequencies


@pytest.fixture
def ax():
    plt.close("all")  # left open by tests of other files: a warning from 20 on
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


@pytest.mark.parametrize("hertz", plots.HERTZ_TICKS)
def test_a_tone_shows_at_its_frequency(hertz, ax):
    band = np.abs(mel_frequencies() - hertz).argmin()
    x = np.zeros((128, 130))
    x[band] = 1
    image = plots.spectrogram(ax, x)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    tick = ax.get_yticks()[labels.index(str(hertz))]
    assert abs(tick - band) <= 0.5
    low, high = image.get_extent()[2:]
    drawn = low + (band + 0.5) * (high - low) / 128
    assert (drawn, image.origin) == (band, "lower")


def test_each_frame_is_drawn_around_its_time(ax):
    left, right, *_ = plots.spectrogram(ax, np.zeros((128, 130))).get_extent()
    assert (right - left) / 130 == pytest.approx(512 / 22_050)
    assert (left + right) / 2 == pytest.approx(frame_times()[[64, 65]].mean())
    assert ax.get_xlim() == (0, right)


def test_levels_and_changes_are_drawn_in_decibel_over_fixed_limits(ax):
    level = plots.spectrogram(ax, np.full((128, 130), 0.2))
    change = plots.change(ax, np.full((128, 130), -0.01), limit_db=0.8)
    for image, limits, shown in ((level, (-80, 0), -64), (change, (-0.8, 0.8), -0.8)):
        assert image.get_clim() == limits
        np.testing.assert_allclose(image.get_array(), shown)


@pytest.mark.filterwarnings("error")
def test_a_map_is_drawn_over_the_spectrogram_it_explains(ax):
    x, heat = np.random.default_rng(0).random((2, 128, 130))
    plots.heatmap(ax, x, heat)
    below, above = ax.images
    np.testing.assert_allclose(below.get_array(), 80 * (x - 1))
    np.testing.assert_array_equal(above.get_array(), heat)
    np.testing.assert_allclose(above.get_alpha(), np.clip(1.5 * heat, 0, 0.8))
    plots.heatmap(ax, x, 0 * heat)  # without a line
    assert (below.get_extent(), above.get_clim()) == (above.get_extent(), (0, 1))


def test_a_confusion_matrix_has_true_genres_as_rows(ax):
    plots.confusion(ax, [[5, 2], [0, 7]], ["blues", "jazz"])
    shown = {text.get_position(): text.get_text() for text in ax.texts}
    assert shown == {(0.5, 0.5): "5", (1.5, 0.5): "2", (1.5, 1.5): "7"}  # centres: column, row
    assert ax.get_ylim() == (2, 0)
    genres = [
        [label.get_text() for label in axis.get_ticklabels()] for axis in (ax.xaxis, ax.yaxis)
    ]
    assert genres == [["blues", "jazz"]] * 2
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("true genre", "predicted genre")


def test_robustness_is_drawn_in_percent_with_eps_in_decibel_above(ax):
    columns = ["attack", "eps", "accuracy", "low", "high"]
    lines = [("clean", 0, 0.9, 0.8, 1), ("pgd", 0.01, 0.25, None, None), ("pgd", 0.001, 0.75, 0, 1)]
    plots.robustness(ax, pd.DataFrame(lines, columns=columns), chance=0.1)
    pgd, clean, chance = ax.get_lines()
    assert pgd.get_xydata().tolist() == [[0.001, 75], [0.01, 25]]
    assert (clean.get_ydata()[0], chance.get_ydata()[0]) == (90, 10)
    ax.figure.canvas.draw()
    (top,) = ax.child_axes
    assert top.get_xlim() == pytest.approx(tuple(80 * eps for eps in ax.get_xlim()))


def test_equalisers_are_drawn_over_their_limit_in_decibel(ax):
    columns = ["attack", "eps", "eps_db", "accuracy", "low", "high"]
    lines = [("clean", 0, 0, 0.9, 0.8, 1), ("equalizer_10", 0.0125, 1, 0.5, None, None)]
    lines += [("equalizer_10", 0.0375, 3, 0.25, 0, 1), ("tempo_pitch", 0, 0, 0.7, 0, 1)]
    lines += [("equalizer_10_random_worst", 0.0375, 3, 0.375, 0, 1)]
    plots.equalizers(ax, pd.DataFrame(lines, columns=columns), chance=0.1)
    drawn = {line.get_label(): line.get_xydata().tolist() for line in ax.get_lines()}
    assert drawn["worst equaliser, 10 bands"] == [[1, 50], [3, 25]]
    assert drawn["worst of random equalisers, 10 bands"] == [[3, 37.5]]
    assert len(drawn) == 4  # with clean and chance
    assert ax.get_xticks().tolist() == [1, 3]


def test_universal_changes_are_drawn_in_decibel_over_hertz():
    learnt = {"one": (np.full((128, 130), 0.01), np.linspace(-3, 3, 10))}
    learnt["two"] = (np.zeros((128, 130)), np.zeros(10))
    figure = plots.universal(learnt, 0.01)
    above, _, below, *_ = figure.axes
    (image,) = above.get_images()
    assert image.get_clim() == (-0.8, 0.8)
    np.testing.assert_allclose(image.get_array(), 0.8)
    hertz, gain = below.get_lines()[0].get_data()
    assert (gain[0], gain[-1]) == (-3, 3)
    assert 0 < hertz[0] < hertz[-1] < 11_025


def test_fragility_shows_each_segment_in_the_row_of_its_genre(ax):
    table = pd.DataFrame({"true": [0, 0, 1, 1], "minimal_eps_db": [0.2, 0.8, 4, np.nan]})
    plots.fragility(ax, table, ["blues", "jazz"])
    ax.figure.canvas.draw()
    rows = [points.get_offsets() for points in ax.collections]
    assert [sorted(row[:, 0]) for row in rows] == [[0.2, 0.8], [4, 8]]
    assert all(abs(row[:, 1] - k).max() < 0.5 for k, row in enumerate(rows))
    assert len(np.unique(ax.collections[1].get_facecolor(), axis=0)) == 2  # one is never flipped
    assert ax.get_xticks()[-1] == 8
    assert ax.get_xticklabels()[-1].get_text() == "none"
    (medians,) = (line.get_xdata() for line in ax.get_lines())
    assert medians.tolist() == [0.5, 6]


def test_fragility_without_a_segment_is_empty(ax):
    none = pd.DataFrame({"true": np.zeros(0, dtype=int), "minimal_eps_db": []})
    plots.fragility(ax, none, ["blues", "jazz"])
    ax.figure.canvas.draw()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["blues", "jazz"]


def test_an_example_shows_segment_adversarial_example_and_perturbation():
    x = np.random.default_rng(0).random((128, 130))
    versions = {"FGSM: predicted jazz": x + 0.01, "PGD: predicted rock": x - 0.005}
    figure = plots.perturbations(x, versions, "original: predicted blues", 0.8)
    original, fgsm, pgd, empty, *changes = figure.axes[:6]
    titles = [ax.get_title() for ax in (original, fgsm, pgd)]
    assert titles == ["original: predicted blues", *versions]
    np.testing.assert_allclose(pgd.images[0].get_array(), 80 * (x - 0.005 - 1))
    assert not empty.has_data()
    for ax, change in zip(changes, (0.8, -0.4), strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), change)
        assert ax.images[0].get_clim() == (-0.8, 0.8)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (s)", "frequency (Hz)")
    assert [ax.get_ylabel() for ax in figure.axes[6:]] == ["level (dB)", "change (dB)"]


def test_the_flow_counts_flips_from_true_to_predicted(ax):
    rows = [(0, 2, True), (0, 2, True), (1, 0, True), (2, 2, False), (1, 2, False)]
    records = pd.DataFrame(rows, columns=["true", "adversarial_prediction", "success"])
    plots.flow(ax, records, [*"abc"])
    shown = {text.get_position(): text.get_text() for text in ax.texts if text.get_text()}
    assert shown == {(2.5, 0.5): "2", (0.5, 1.5): "1"}


def test_each_checkpoint_has_its_panel_and_the_figure_one_legend():
    columns = ["checkpoint", "attack", "eps", "accuracy", "low", "high"]
    rows = [(name, "clean", 0, 0.9, 0.8, 1) for name in "ba"]
    rows += [(name, "pgd", eps, eps, 0, 1) for name in "ba" for eps in (0.01, 0.1)]
    rows += [("a", "hop_skip_jump", 0.01, 1, 1, 1)]  # of few segments: no curve
    figure = plots.per_checkpoint(
        plots.robustness, pd.DataFrame(rows, columns=columns), "Why?", 0.1
    )
    assert figure.get_suptitle() == "Why?"
    assert [ax.get_title() for ax in figure.axes] == ["b", "a"]
    assert [ax.get_ylabel() for ax in figure.axes] == ["accuracy (%)", ""]
    assert [ax.get_legend() for ax in figure.axes] == [None, None]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["PGD", "clean", "chance"]


def test_a_corruption_is_drawn_from_none_to_hard(ax):
    rows = [("none", 0, 0.9), ("low_pass", 1000, 0), ("mp3", 64, 0.7), ("mp3", 8, 0.2)]
    table = pd.DataFrame(rows, columns=["corruption", "severity", "accuracy"])
    table = table.assign(checkpoint="documented", low=0, high=1, unit="kbit/s")
    table.loc[3, ["low", "high"]] = np.nan
    plots.corruptions(ax, table, "documented")
    shown = {text.get_position(): text.get_text() for text in ax.texts}
    ends = "\n0\N{EN DASH}100"
    assert [shown[k + 0.5, 0.5] for k in range(2)] == ["90" + ends, "0" + ends]
    assert [shown[k + 0.5, 1.5] for k in range(3)] == ["90" + ends, "70" + ends, "20"]
    assert len(shown) == 5
    assert [label.get_text() for label in ax.get_xticklabels()] == ["none", "1", "2"]
    assert ax.get_yticklabels()[1].get_text() == "MP3\n64, 8\nkbit/s"


def test_intervals_of_a_single_track_are_left_out(ax):
    measure = {"value": 0.5, "low": None, "high": None, "n_segments": 3, "n_tracks": 1}
    plots.genre_accuracy(ax, {"blues": measure, "jazz": measure | {"low": 0.4, "high": 0.6}}, 0.1)
    assert [bar.get_height() for bar in ax.patches] == [50, 50]
    ax.figure.canvas.draw()


def test_checkpoints_stand_beside_baseline_and_chance_in_percent(ax):
    row = {"checkpoint": "documented_43", "segment_accuracy": 0.8, "segment_low": 0.7}
    row |= {"segment_high": 0.85, "track_accuracy": 0.9, "track_low": None, "track_high": None}
    levels = {"segment_accuracy": {"value": 0.6}, "track_accuracy": {"value": 0.7}, "chance": 0.1}
    plots.checkpoints(ax, pd.DataFrame([row]), levels)
    clips, songs = ax.containers
    assert [clips.lines[0].get_ydata()[0], songs.lines[0].get_ydata()[0]] == [80, 90]
    (bar,) = clips.lines[2]
    assert bar.get_segments()[0][:, 1].tolist() == pytest.approx([70, 85])
    assert not np.isfinite(songs.lines[2][0].get_segments()).any()  # no bar without an interval
    drawn = {line.get_label(): line.get_ydata()[0] for line in ax.get_lines()}
    assert (drawn["baseline, segments"], drawn["baseline, tracks"], drawn["chance"]) == (60, 70, 10)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["documented_43"]
    ax.figure.canvas.draw()


def test_a_figure_is_saved_whole(ax, tmp_path):
    plots.spectrogram(ax, np.random.default_rng(0).random((128, 130)))
    path = plots.save_figure(ax.figure, tmp_path / "new" / "figure.png", "tiny")
    assert imread(path).std() > 0
    assert [text.get_text() for text in ax.figure.texts] == ["corpus: tiny"]
    assert [p.name for p in path.parent.iterdir()] == ["figure.png"]
