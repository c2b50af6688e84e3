"""A step's place: the state folder, the store of finished steps, scratch folders and progress."""
