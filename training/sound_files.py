"""Which files of a folder or tar file are recordings."""

AUDIO_SUFFIXES = (".flac", ".wav", ".opus", ".ogg", ".mp3")
