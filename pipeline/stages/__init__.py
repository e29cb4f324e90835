"""What runs in Ray's tasks and actors: Arrow table in, Arrow table out. No Ray, no storage."""
