"""Readers of section files: each turns one kind of file into a :class:`~hyperst.data.readers.table.SpotTable`."""
