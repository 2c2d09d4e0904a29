/**
 * Commands a serving process and dies (SIGKILL) at the first event that is told to be the last: `commander SOCKET METHOD PARAMS LAST`.
 * LAST is a phase, or `listening`. It ends with 0 where that never came.
 */
import { ServeClient } from '#towline/serve/client.js';

const [, , socket = '', method, params = '{}', last] = process.argv;
const client = await ServeClient.connect(socket);
const die = (): void => void process.kill(process.pid, 'SIGKILL');
if (method === 'migrate') {
  await client.call(method, JSON.parse(params) as { functions: string[]; to: string; policy: object }, {
    onEvent: (event) => {
      if (event.type === 'phase' && event.phase === last) die();
    },
  });
} else if (method === 'receive') {
  await client.call(method, JSON.parse(params) as { functions: string[]; from: string }, {
    onEvent: (event) => {
      if (event.type !== 'listening') return;
      // Its last words, once they are on their way.
      if (process.send) process.send(event.address, () => last === 'listening' && die());
    },
  });
}
client.close();
process.disconnect?.();
