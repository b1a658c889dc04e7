"""How adapters relate, module by module: cosine, sign conflict, interference, and the page that shows it."""
