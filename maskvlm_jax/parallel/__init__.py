"""Several devices and several processes as one: the mesh, where arrays lie, who writes, who is lost."""
