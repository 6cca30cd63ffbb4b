"""Display names and styles of attacks, corruptions and explanations, in tables and figures."""

from typing import NamedTuple

import pandas as pd


class Style(NamedTuple):
    """The name of an attack in tables and figures, its colour (Okabe and Ito), marker and line."""

    label: str
    colour: str
    line: str


ATTACKS = {  # on spectrograms, in the order of figures
    "noise_linf": Style("uniform noise, same L-infinity norm", "#009E73", "^:"),
    "noise_l2": Style("Gaussian noise, same L2 norm", "#56B4E9", "v:"),
    "fgsm": Style("FGSM", "#0072B2", "o-"),
    "pgd": Style("PGD", "#E69F00", "s-"),
    "pgd_restarts": Style("+ restarts", "#E69F00", "1"),
    "pgd_doubled": Style("+ twice the iterations", "#E69F00", "2"),
    "pgd_targeted": Style("+ targeted PGD", "#CC79A7", "x"),
    "apgd_ce": Style("+ APGD, cross-entropy", "#D55E00", "+"),
    "apgd_dlr": Style("+ APGD, logit ratio", "#D55E00", "4"),
    "square": Style("+ Square", "#F0E442", "D"),
    "hop_skip_jump": Style("HopSkipJump, on few segments", "#999999", "h--"),
    "square_alone": Style("Square by itself, on few segments", "#F0E442", "D--"),
    "worst_case": Style("worst of the attacks run", "#000000", ".-"),
}
EQUALIZERS = {  # one gain per band
    "equalizer_10_random": Style("mean of random equalisers, 10 bands", "#56B4E9", "^:"),
    "equalizer_10_random_worst": Style("worst of random equalisers, 10 bands", "#56B4E9", "P--"),
    "equalizer_10": Style("worst equaliser, 10 bands", "#0072B2", "o-"),
    "equalizer_64_random": Style("mean of random equalisers, 64 bands", "#E69F00", "v:"),
    "equalizer_64_random_worst": Style("worst of random equalisers, 64 bands", "#E69F00", "X--"),
    "equalizer_64": Style("worst equaliser, 64 bands", "#D55E00", "s-"),
}
AUDIO_ATTACKS = {
    "noise": Style("white noise (control)", "#009E73", "^-"),
    "fgsm_waveform": Style("FGSM on the waveform", "#0072B2", "o-"),
    "pgd_waveform": Style("PGD on the waveform", "#E69F00", "s-"),
    "noise_masked": Style("noise below the masking threshold (control)", "#999999", "d-"),
    "pgd_masked": Style("PGD below the masking threshold", "#CC79A7", "D-"),
    "pgd_spectrogram_resynthesized": Style("spectrogram PGD, filtered sound", "#D55E00", "v-"),
    "pgd_spectrogram_optimized": Style("spectrogram PGD, optimised sound", "#F0E442", "*-"),
    "equalizer_file": Style("worst equaliser, 10 bands", "#56B4E9", "P-"),
}
CODECS = {
    "mp3_64k": "MP3, 64 kbit/s",
    "ogg": "Ogg Vorbis",
    "gain": "3 dB lower",
    "shift": "10 ms later",
}
CORRUPTIONS = {  # severities carry their unit in `corruptions.csv`
    "none": "none",
    "white_noise": "white noise",
    "mp3": "MP3",
    "low_pass": "low-pass filter",
    "clipping": "clipping",
    "reverberation": "reverberation",
    "time_stretch": "time stretch",
    "pitch_shift": "pitch shift",
}
NAMES = {name: style.label for name, style in (ATTACKS | AUDIO_ATTACKS | EQUALIZERS).items()}
NAMES |= CODECS | CORRUPTIONS
NAMES |= {
    "pgd_waveform_doubled": "+ twice the steps, another start",
    "equalizer_file_random": "mean of random equalisers, 10 bands",
    "equalizer_spectrogram": "worst equaliser, 10 bands, no sound",
    "tempo_pitch_random": "mean of 5 x 5 tempi and pitches",
    "tempo_pitch": "worst of 5 x 5 tempi and pitches",
    "tempo_pitch_noise": "mean of 25 noises, same L2 norms",
    "tempo_pitch_noise_worst": "worst of 25 noises, same L2 norms",
    "universal": "one pattern for all segments",
    "universal_shuffled": "mean of this pattern, bins shuffled",
    "universal_random": "mean of random signs of the same eps",
    "universal_equalizer": "one equaliser for all segments",
    "universal_equalizer_random": "mean of random equalisers",
}
NAMES |= {"segment_accuracy": "segments", "track_accuracy": "tracks"}
NAMES |= {"wav16": "WAV, 16 bits", "pgd_spectrogram": "spectrogram PGD, no sound"}
METHODS = {  # of explanation, and their controls
    "gradcam": "Grad-CAM",
    "hirescam": "HiResCAM",
    "gradcam++": "Grad-CAM++",
    "layercam": "LayerCAM",
    "xgradcam": "XGrad-CAM",
    "eigencam": "Eigen-CAM",
    "scorecam": "Score-CAM",
    "integrated_gradients": "integrated gradients",
    "randomcam": "random weights",
    "frequency_prior": "mean map of the genre",
    "blurred_random": "smooth noise",
}
MEASURES = {  # of maps, in tables of differences
    "class_specificity": "similarity to the genre's mean map less other genres'",
    "prototype_margin": "similarity to the predicted genre's mean map less the true genre's",
    "spearman": "rank correlation with the clean map",
    "top_overlap": "overlap of the top tenth",
    "probability_change": "change of the probability",
    "insertion": "insertion",
    "deletion": "deletion",
    "relevance_mass": "share of the map in the box",
    "mass_above_area": "share of the map in the box less its area",
}
CONDITIONS = {  # of maps: segment and target class
    "succeeded_predicted": "successful attack, predicted genre's map",
    "succeeded_true": "successful attack, true genre's map",
    "target_predicted": "no attack, map of the same predicted genre",
    "failed": "failed attack, true genre's map",
    "minus": "opposite perturbation, true genre's map",
    "other_segment": "another segment's perturbation, true genre's map",
    "same_spectrum": "noise of the attack's spectrum, true genre's map",
    "noise": "noise of the attack's norm, true genre's map",
    "noise_succeeded": "noise of a successful attack's norm, true genre's map",
    "other_track": "no attack, another track of the genre",
    "clean": "no attack, true genre's map",
    "target_any": "no attack, mean over all target classes",
    "natural": "natural failure, predicted genre's map",
    "adversarial": "adversarial example, predicted genre's map",
    "confined": "attack in the box, predicted genre's map",
    "manipulated": "attack on the map",
    "manipulated_noise": "the same perturbation, bins shuffled",
}
EXAMPLES = {  # category of a map shown, and the genre that it explains
    "baseline_correct": "correct",
    "natural_failures": "natural failures",
    "adversarial_fgsm": "FGSM",
    "adversarial_pgd": "PGD",
    "both": "true genre, as predicted",
    "true": "true genre",
    "predicted": "predicted genre",
}
MAPS = METHODS | MEASURES | CONDITIONS | EXAMPLES


def percent(value: float, low: float | None, high: float | None) -> str:
    """Return a fraction in percent with its interval, if it has one; nothing for NaN."""
    interval = "" if pd.isna(low) else f" [{round(100 * low)}, {round(100 * high)}]"
    return "" if pd.isna(value) else f"{round(100 * value)}%{interval}"
