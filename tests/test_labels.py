"""Everything that figures and tables name has a label, and nothing else has one."""

from src import labels
from src.attacks import codecs, corruptions, waveform
from src.attacks.audio import BEFORE_FILE
from src.attacks.equalizer import BANDS
from src.attacks.records import NOISES, WORST_CASE
from src.attacks.suite import BLACK_BOX, Budgets, stages
from src.effort import EFFORTS
from src.explainability import attributions, figures
from src.explainability.records import BETWEEN_MODELS, CONTRASTS


def test_every_attack_has_a_label_and_a_style_of_its_own():
    suite = [s.name for s in stages(Budgets(), EFFORTS["full"], 0.01, n_genres=10)]
    known = {"fgsm", "pgd", *suite, *BLACK_BOX, *NOISES, WORST_CASE}
    assert set(labels.ATTACKS) == known
    kinds = ("", "_random", "_random_worst")
    assert set(labels.EQUALIZERS) == {f"equalizer_{n}{kind}" for n in BANDS for kind in kinds}
    assert set(labels.AUDIO_ATTACKS) == {*waveform.ATTACKS, *BEFORE_FILE}
    for styles in (labels.ATTACKS, labels.AUDIO_ATTACKS, labels.EQUALIZERS):
        assert len({style.label for style in styles.values()}) == len(styles)
        assert len({style[1:] for style in styles.values()}) == len(styles)


def test_every_codec_and_corruption_has_a_label():
    assert list(labels.CODECS) == list(codecs.CODECS)[1:]
    assert set(labels.CORRUPTIONS) == set(corruptions.CORRUPTIONS)


def test_every_method_measure_and_condition_in_a_table_of_explanations_has_a_label():
    assert set(labels.METHODS) == {*attributions.METHODS, *attributions.CONTROLS}
    rows = *CONTRASTS, *BETWEEN_MODELS
    measures = {row.measure for row in rows}
    assert set(labels.MEASURES) == measures | {"top_overlap", "probability_change"}
    conditions = {name for row in rows for name in (row.condition, row.compared_with) if name}
    assert set(labels.CONDITIONS) == conditions | {*figures.CONDITION_STYLE}
    parts = labels.METHODS, labels.MEASURES, labels.CONDITIONS, labels.EXAMPLES
    assert len(labels.MAPS) == sum(map(len, parts))  # no name has two meanings
    assert len(set(labels.MAPS.values())) == len(labels.MAPS)
