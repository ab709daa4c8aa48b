"""The synthetic demo corpus, spoken by eSpeak NG: no recording is downloaded, so the demo runs on any machine.

importer     importer `espeak`: synthesizes the corpus on first use and reads its manifest
synthesis    `synthesize_corpus`: writes the corpus with one worker process per language
prosody      emotions as rules: voice parameters and signal processing
speakers     voices and their individual base values
sentences    languages and sentences
synthesizer  espeak-ng through ctypes
"""
