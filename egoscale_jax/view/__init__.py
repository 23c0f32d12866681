"""Pictures for people: frames with hands, videos, plots, the report of a run."""
