"""Make the teacher smaller and teach the student (needs the ``build`` extra)."""
