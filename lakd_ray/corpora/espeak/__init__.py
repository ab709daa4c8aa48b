"""The synthetic demo corpus, spoken by eSpeak NG."""
