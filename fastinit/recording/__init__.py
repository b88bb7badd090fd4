"""From code that runs to items: ``capture``, and what operators mean to pending fills."""
