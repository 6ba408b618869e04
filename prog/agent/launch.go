package agent

import (
	"context"
	"os"
	"time"

	"weft/prog/agent/config"
	"weft/prog/agent/control"
	"weft/prog/agent/live"
	"weft/prog/agent/statedir"
)

// belongsNowhere is why an agent waits that was not told to found.
const belongsNowhere = "this host belongs to no network: join one with `weft launch --token - HOST`, or found one with `weft launch` (a supervisor's agent: weft agent --found)"

// AwaitLaunch serves the sockets of an agent that belongs to no network, and says so there, until
// `weft launch` decides (then it returns true) or the agent is stopped. before is launch's decision
// as it was when the agent found that it belongs to none (statedir.Launched).
func AwaitLaunch(ctx context.Context, opts config.Options, before os.FileInfo) (launched bool, err error) {
	r := newRun(opts, belongsNowhere)
	ctx, r.stop = context.WithCancel(ctx)
	defer r.stop()
	if err := CheckPrivileges(); err != nil {
		return false, err
	}
	_, group, ctx, err := r.listen(ctx, true)
	if err != nil {
		return false, err
	}
	opts.Log.Warn(belongsNowhere)
	control.Notify("READY=1", "STATUS="+belongsNowhere)
	group.Go(func() error {
		for ctx.Err() == nil && !launched {
			launched = statedir.LaunchedSince(opts.StateDir, before)
			live.Pause(ctx, 100*time.Millisecond)
		}
		r.stop()
		return nil
	})
	err = group.Wait()
	return launched, err
}
