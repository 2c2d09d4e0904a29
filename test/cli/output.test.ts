import test from 'ava';
import { Output } from '#towline/cli/context.js';
import { TowlineError } from '#towline/errors.js';

test('what does not fit is listed, also where the migration that it kept from going was rolled back', (t) => {
  const mismatches = [{ code: 'queues', message: 'it has 2 queues, 4 are wanted', mend: 'provision 4' }];
  const cause = new TowlineError('ERR_TOWLINE_MISMATCH', 'it does not fit', { details: { mismatches } });
  const rolledBack = new TowlineError('ERR_TOWLINE_ROLLED_BACK', 'nothing moved', { cause, details: { report: {} } });
  const said = (error: TowlineError): string => {
    let text = '';
    const stderr = { write: (part: string) => (text += part) };
    new Output({ stderr, stdout: stderr, env: {} } as unknown as NodeJS.Process, {}).error(error);
    return text;
  };
  for (const error of [cause, rolledBack]) t.regex(said(error), /- it has 2 queues, 4 are wanted\n +provision 4\n$/);
  t.notRegex(said(new TowlineError('ERR_TOWLINE_ROLLED_BACK', 'nothing moved')), /- /);
});
