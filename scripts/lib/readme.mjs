const block = /<!-- example -->\s*```(?:js|javascript)\n([\s\S]*?)```\s*<!-- \/example -->/g;

/**
 * The one example of the README that stands between `<!-- example -->` and `<!-- /example -->`.
 * @param {string} readme
 * @returns {string}
 */
export function exampleOf(readme) {
  const [first, second] = readme.matchAll(block);
  if (first?.[1] === undefined) throw new Error('the README has no example between its markers');
  if (second !== undefined) throw new Error('the README has more than one example between markers');
  return first[1];
}
