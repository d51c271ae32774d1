"""Ways to prune, one short file each: functions that return a `Method`."""
