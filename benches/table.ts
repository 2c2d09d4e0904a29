import type { Result } from './result.js';

const columns: readonly (readonly [title: string, cell: (result: Result) => string])[] = [
  ['case', (r) => r.case],
  ['ours', (r) => `${r.ours.toFixed(2)} ${r.unit}`],
  ['theirs', (r) => `${r.theirs.toFixed(2)} ${r.unit}`],
  ['ratio', (r) => `${r.ratio.toFixed(2)} ±${r.ratioMad.toFixed(2)}`],
  ['goal', (r) => r.goal],
  ['met', (r) => (r.met ? 'yes' : 'no')],
  ['theirs is', (r) => r.peer],
];

/** For people. */
export function table(results: readonly Result[]): string {
  const rows = [columns.map(([title]) => title), ...results.map((result) => columns.map(([, cell]) => cell(result)))];
  const widths = columns.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  const lines = rows.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join('  ')
      .trimEnd(),
  );
  return `${lines.join('\n')}\n`;
}
