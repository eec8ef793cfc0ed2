"""A data set through a method: shards of maps on disk, by one worker or many, and how they are read again."""
