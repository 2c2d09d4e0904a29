/**
 * A destination that dies at a point of the handoff: `serve` itself offers no such fault. Arguments: directory, UUID, where to listen, the
 * point. Its journal is the one that a serving process with the name `b` takes up afterwards.
 */
import { join } from 'node:path';
import { GuestMemory, Journal, receive } from '#towline/index.js';
import { embedded } from '#towline/rehearsal/index.js';

const [directory = '', uuid = '', from = '', killAt = ''] = process.argv.slice(2);
const subsystem = await embedded.open({
  name: 'b',
  namespaces: [{ path: join(directory, 'namespace'), sizeBytes: 4n << 20n }],
});
const fn = await subsystem.provision({ kind: 'vf', uuid, name: 'v', namespaces: [1] });
const memory = GuestMemory.anonymous('v', 4n << 20n);
subsystem.attachMemory(fn, memory);
const received = receive(fn, {
  from,
  memory,
  fence: new Journal(join(directory, 'journal-b')),
  faults: { killAt },
  onListening: () => process.stdout.write('listening\n'),
});
await received.result;
