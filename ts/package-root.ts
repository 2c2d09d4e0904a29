/** The folder of this package, as a URL that ends with a slash. */
export const packageRoot: URL = new URL('../', import.meta.url);
