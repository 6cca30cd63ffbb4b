"""Music genre robustness: how robust is a genre classifier, can its explanations be trusted?"""
