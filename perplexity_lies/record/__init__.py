"""What a run leaves on disk: records, journal, manifest. The only place where the run wing and the read wing meet."""
