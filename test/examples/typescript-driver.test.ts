import { execFile } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import test from 'ava';
import {
  conformDirtySource,
  conformDriver,
  conformStateChannel,
  type CheckResult,
  type ChannelSubject,
} from '#towline/conformance/index.js';
import { TallyChannel, TallyWrites } from '../../dist-examples/typescript-driver/channel.js';
import { TallyDriver } from '../../dist-examples/typescript-driver/driver.js';
import { Tally } from '../../dist-examples/typescript-driver/tally.js';

const folder = new URL('../../examples/typescript-driver/', import.meta.url);

async function notPassed(results: AsyncIterable<CheckResult>): Promise<string[]> {
  const found: string[] = [];
  let checks = 0;
  for await (const { check, outcome, why } of results) {
    checks += 1;
    if (outcome !== 'passed') found.push(`${check}: ${outcome}: ${why}`);
  }
  if (checks === 0) found.push('there were no checks');
  return found;
}

/** A channel under test; `spoil` breaks the device. */
function subject(spoil: (device: Tally) => void = () => undefined): ChannelSubject {
  return {
    open: async () => {
      const device = new Tally();
      const channel = new TallyChannel(device);
      spoil(device);
      return {
        channel,
        stimulate: async (seed) => device.add(BigInt(seed)),
        observe: async () => `${device.total} after ${device.count}`,
        close: () => channel.close(),
      };
    },
  };
}

test('it imports nothing of towline but the package', (t) => {
  const files = readdirSync(folder);
  t.true(files.length >= 4);
  for (const file of files) {
    const text = readFileSync(new URL(file, folder), 'utf8');
    for (const [, from = ''] of text.matchAll(/from '([^']+)'/g)) {
      t.regex(from, /^(?:node:|\.\/|towline$|towline\/conformance$)/, `${file} imports ${from}`);
    }
  }
});

test('the driver passes', async (t) => {
  t.deepEqual(await notPassed(conformDriver({ driver: new TallyDriver({ x: 2 }), address: 'tally:x' })), []);
});

test('the state channel passes, but for what the device can not do', async (t) => {
  t.deepEqual(await notPassed(conformStateChannel(subject())), [
    'channel/pre-copy: not-exercised: flags.preCopy is false',
    'channel/reset-error: not-exercised: the subject has no means to bring the device into error',
  ]);
});

test('the dirty source passes', async (t) => {
  const results = conformDirtySource({
    open: async () => {
      const device = new Tally();
      const source = new TallyWrites(device);
      return {
        source,
        ranges: [{ gpa: 0n, len: 1n << 20n }],
        pageSizeBytes: 4096,
        write: async (gpa, len) => device.onWrite(gpa, len),
        close: () => source.close(),
      };
    },
  });
  t.deepEqual(await notPassed(results), []);
});

test('a device that forgets what it was given is found out', async (t) => {
  const forgetful = subject((device) => {
    for (const register of ['count', 'total']) {
      Object.defineProperty(device, register, { get: () => 0n, set() {} });
    }
  });
  const found = await notPassed(conformStateChannel(forgetful));
  t.true(
    found.some((line) => line.startsWith('loading/same-behaviour: failed')),
    found.join('\n'),
  );
});

test('it migrates from one box to another, with the memory that it wrote', async (t) => {
  const main = fileURLToPath(new URL('../../dist-examples/typescript-driver/main.js', import.meta.url));
  const { stdout } = await promisify(execFile)(process.execPath, [main]);
  t.is(stdout, 'committed: total 6050, in memory 5050 and 6050\n');
});

/** What stands between two marks in a file of the example, without its indentation. */
function marked(file: string, mark: string): string {
  const text = readFileSync(new URL(file, folder), 'utf8');
  const found = new RegExp(`// guide: ${mark}\\n(.*?)\\n *// guide: end`, 's').exec(text)?.[1] ?? '';
  const indent = Math.min(
    ...found
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => line.search(/\S/)),
  );
  return found.replaceAll(new RegExp(`^ {${indent}}`, 'gm'), '').trimEnd();
}

test('the guide shows the code of the example', (t) => {
  const guide = readFileSync(new URL('../../docs/guides/drivers.md', folder), 'utf8');
  for (const [file, mark] of [
    ['driver.ts', 'driver'],
    ['channel.ts', 'arcs'],
  ] as const) {
    const code = marked(file, mark);
    t.true(code.split('\n').length > 5, `${file} has no part ${mark}`);
    t.true(guide.includes(`// examples/typescript-driver/${file}\n${code}\n\`\`\``), `${file}: ${mark} is another one`);
  }
});
