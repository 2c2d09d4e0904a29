/** The guide for hosts: its commands run here, whatever this host has, and its tables say what the code says. */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import test from 'ava';
import { variantDrivers } from '#towline/host/index.js';
import { main } from '../support/cli.js';
import { runScript, shellBlocks } from '../support/guide.js';

const root = new URL('../../', import.meta.url);
const read = (path: string): string => readFileSync(new URL(path, root), 'utf8');
const guide = read('docs/guides/linux.md');

/** The cells of the rows of the first table below a heading. */
function table(text: string, heading: string): string[][] {
  const section = new RegExp(`^## ${heading}$(.*?)(?=^## |(?![^]))`, 'ms').exec(text)?.[1] ?? '';
  const rows = [...section.matchAll(/^\|(.*)\|$/gm)].map((m) => (m[1] ?? '').split('|').map((cell) => cell.trim()));
  return rows.slice(2);
}

test('the commands of the guide do what it says, on this host', async (t) => {
  const script = shellBlocks(guide).join('\n');
  for (const command of ['list', 'explain']) t.true(script.includes(`towline ${command}`), command);
  const { code, out } = await runScript(t, script);
  t.is(code, 0, out);
  t.regex(out, /this host: kernel /);
});

test('the table of families says of each driver what the code knows', (t) => {
  const rows = table(guide, 'The families of devices');
  const shown = new Map<string, string[]>();
  for (const [names = '', , states = '', dirty = ''] of rows) {
    for (const [, name = ''] of names.matchAll(/`([^`]+)`/g)) shown.set(name, [states, dirty]);
  }
  for (const { driver, states, dirtyLog, bus } of variantDrivers) {
    if (bus === 'mdev' && driver !== 'mtty') continue;
    const [told, dirty] = shown.get(driver) ?? [];
    const arcs = [states.stopCopy && 'stop-copy', states.p2p && 'p2p', states.preCopy && 'pre-copy'].filter(Boolean);
    t.is(told, arcs.join(', ') || 'none', driver);
    if (!states.stopCopy) continue;
    t.is(dirty === 'IOMMU only', dirtyLog === 'no', driver);
  }
});

test('what the guide says that a kernel needs is what the kernel of the tests has', (t) => {
  const config = read('test/kernel/kernel.config');
  const rows = table(guide, 'What the kernel needs');
  const options = rows.flatMap(([names = '']) => [...names.matchAll(/`([A-Z0-9_]+)`/g)].map((m) => m[1] ?? ''));
  t.true(options.length > 10);
  // The other architectures' IOMMU; the group and container are switched on by default.
  const elsewhere = new Set(['ARM_SMMU_V3', 'VFIO_GROUP', 'VFIO_CONTAINER', 'VFIO_IOMMU_TYPE1', 'VFIO_MDEV']);
  for (const option of options) {
    t.true(elsewhere.has(option) || new RegExp(`^CONFIG_${option}=[ym]$`, 'm').test(config), option);
  }
});

test('every option of a command that a guide shows exists', (t) => {
  const guides = readdirSync(new URL('docs/guides/', root)).map((name) => `docs/guides/${name}`);
  const wanted = new Map<string, Set<string>>();
  for (const path of ['README.md', ...guides]) {
    for (const [, command = '', rest = ''] of read(path)
      .replaceAll('\\\n', ' ')
      .matchAll(/\btowline (?!serve`)([a-z]+)\b([^`\n&|]*)/g)) {
      const flags = wanted.get(command) ?? new Set<string>();
      for (const [flag] of rest.matchAll(/--[a-z][a-z-]+/g)) flags.add(flag);
      if (rest.includes('--') || flags.size > 0) wanted.set(command, flags);
    }
  }
  t.true(wanted.size > 5);
  for (const [command, flags] of wanted) {
    const help = execFileSync(process.execPath, [main, command, '--help'], { encoding: 'utf8' });
    for (const flag of flags) t.true(help.includes(flag), `towline ${command} ${flag}`);
  }
});

test('the guide of the command line has every command', (t) => {
  const rows = [...read('docs/guides/cli.md').matchAll(/^\| `([a-z]+)` \|/gm)].map((m) => m[1]);
  const help = execFileSync(process.execPath, [main, '--help'], { encoding: 'utf8' });
  const commands = [...help.matchAll(/^ {2}towline ([a-z]+)\b/gm)].map((m) => m[1]);
  t.true(commands.length > 10);
  t.deepEqual(rows.toSorted(), [...new Set(commands)].toSorted());
});

test('a table that differs is noticed', (t) => {
  t.deepEqual(table('## A\n| a |\n|---|\n| 1 | 2 |\n## B\n| x |\n|---|\n| 3 |\n', 'A'), [['1', '2']]);
});
