/**
 * The JSON objects of an output, one a line; other lines are left aside. A line that begins as an object and is none
 * is an error, not another line.
 * @param {string} stdout
 * @returns {Record<string, any>[]}
 */
export function jsonLines(stdout) {
  return stdout
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line));
}
