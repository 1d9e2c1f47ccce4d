"""What HTML pages share: a template, a style, a script, and how they become one file with a page's own."""
