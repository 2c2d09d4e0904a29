// Where the other programs of the guest are: beside this one, in the bundle that scripts/lib/guest-bundle.mjs makes.

/** The command `towline`. */
export const cli = new URL('cli.js', import.meta.url);
/** The package's entry. */
export const api = new URL('towline.js', import.meta.url);
/** See `commands.ts`. */
export const commands = new URL('commands.js', import.meta.url);
/** See `inside-serve.ts`. */
export const insideServe = new URL('inside-serve.js', import.meta.url);
