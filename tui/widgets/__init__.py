"""The parts that screens are made of. They draw what the view model derived and know no kind of object."""
