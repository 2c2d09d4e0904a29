import { readFileSync } from 'node:fs';
import test from 'ava';
import { adminOpcodes, ioOpcodes, statusNames } from '#towline/rehearsal/names.js';
import { parseFaultRule, parseRates } from '#towline/rehearsal/index.js';

const source = (name: string): string =>
  readFileSync(new URL(`../../crates/nvme/src/${name}`, import.meta.url), 'utf8');

/** Numbers by name in kebab case, as the Rust source has them. */
function constants(text: string, pattern: RegExp): Map<string, number> {
  const kebab = (name: string): string =>
    name
      .replaceAll(/([a-z])([A-Z])/g, '$1-$2')
      .replaceAll('_', '-')
      .toLowerCase();
  return new Map([...text.matchAll(pattern)].map((m) => [kebab(m[1] ?? ''), Number(m[2])]));
}

test('names stand for the numbers that the model has', (t) => {
  const command = source('command.rs');
  const [, admin = '', io = ''] = command.split(/pub mod (?:io_)?opcode \{/);
  const opcode = /pub const (\w+): u8 = (0x[0-9a-f]+);/g;
  const lists: [object, Map<string, number>][] = [
    [adminOpcodes, constants(admin, opcode)],
    [ioOpcodes, constants(io.slice(0, io.indexOf('\n}')), opcode)],
    [statusNames, constants(source('status.rs'), /^ {4}(\w+) = (0x[0-9a-f]+), "/gm)],
  ];
  for (const [ours, theirs] of lists) {
    t.true(theirs.size > 3);
    for (const [name, number] of Object.entries(ours)) t.is(theirs.get(name), number as number, name);
  }
});

test('a fault as people write it', (t) => {
  t.deepEqual(parseFaultRule('function=vf0,queue=io,opcode=write,nth=3,count=1,action=delay:50ms'), {
    function: 'vf0',
    queue: 'io',
    opcode: 1,
    nth: 3,
    count: 1,
    action: { kind: 'delay', ms: 50 },
  });
  t.deepEqual(parseFaultRule('opcode=migration-receive, action=status:0x4281'), {
    opcode: 0x42,
    queue: 'admin',
    action: { kind: 'status', sct: 2, sc: 0x81, dnr: true },
  });
  t.deepEqual(parseFaultRule('opcode=0x02,count=0,action=hang'), { opcode: 2, count: 0, action: { kind: 'hang' } });
  t.deepEqual(parseFaultRule('action=status:write-fault').action, { kind: 'status', sct: 2, sc: 0x80, dnr: false });
  t.deepEqual(parseFaultRule('action=delay:2s').action, { kind: 'delay', ms: 2000 });
});

test('a fault that is wrong names the part', (t) => {
  for (const [text, part] of [
    ['', ''],
    ['action', 'action'],
    ['action=', 'action='],
    ['opcode=write', 'action'],
    ['nth=0,action=hang', 'nth=0'],
    ['nth=1.5,action=hang', 'nth=1.5'],
    ['count=4294967296,action=hang', 'count=4294967296'],
    ['opcode=256,action=hang', 'opcode=256'],
    ['opcode=wirte,action=hang', 'opcode=wirte'],
    ['opcode=constructor,action=hang', 'opcode=constructor'],
    ['queue=both,action=hang', 'queue=both'],
    ['queue=admin,opcode=write,action=hang', 'opcode=write'],
    ['queue=io,opcode=identify,action=hang', 'opcode=identify'],
    ['function=a,function=b,action=hang', 'function=b'],
    ['when=now,action=hang', 'when=now'],
    ['action=explode', 'action=explode'],
    ['action=hang:1', 'action=hang:1'],
    ['action=delay', 'action=delay'],
    ['action=delay:50', 'action=delay:50'],
    ['action=delay:500us', 'action=delay:500us'],
    ['action=delay:2h', 'action=delay:2h'],
    ['action=delay:3601s', 'action=delay:3601s'],
    ['action=status', 'action=status'],
    ['action=status:0', 'action=status:0'],
    ['action=status:0x4000', 'action=status:0x4000'],
    ['action=status:0x800', 'action=status:0x800'],
    ['action=status:oops', 'action=status:oops'],
  ] as const) {
    t.like(
      t.throws(() => parseFaultRule(text), undefined, text),
      { code: 'ERR_TOWLINE_INVALID_ARGUMENT', details: { part } },
      text,
    );
  }
  t.throws(() => parseFaultRule(`action=hang,function=${'x'.repeat(1000)}`), { code: 'ERR_TOWLINE_INVALID_ARGUMENT' });
});

test('rates as people write them', (t) => {
  t.deepEqual(parseRates('save=100MiB/s,load=64K,save-latency=5ms,load-latency=20ms,io-latency=500us'), {
    saveBytesPerSecond: 100 << 20,
    loadBytesPerSecond: 65_536,
    saveLatencyMs: 5,
    loadLatencyMs: 20,
    ioLatencyMs: 0.5,
  });
  t.deepEqual(parseRates('none'), {});
  for (const [text, part] of [
    ['save', 'save'],
    ['save=fast', 'save=fast'],
    ['save=0', 'save=0'],
    ['save=100MiB/h', 'save=100MiB/h'],
    ['load-latency=20', 'load-latency=20'],
    ['load-latency=0.5ms', 'load-latency=0.5ms'],
    ['write=1M', 'write=1M'],
    ['load=1M,load=2M', 'load=2M'],
  ] as const) {
    t.like(
      t.throws(() => parseRates(text), undefined, text),
      { code: 'ERR_TOWLINE_INVALID_ARGUMENT', details: { part } },
      text,
    );
  }
});
