"""The data of the panel's pages, gathered from the nodes and formatted for the templates."""
