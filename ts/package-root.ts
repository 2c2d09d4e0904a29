/** The folder of this package, as a URL that ends with a slash. This module, compiled or in a bundle, lies one level below it. */
export const packageRoot: URL = new URL('../', import.meta.url);
