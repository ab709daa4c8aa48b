"""Train runs on Ray Train worker groups."""
