package agent

import (
	"context"
	"os"
	"time"

	"weft/prog/agent/config"
	"weft/prog/agent/control"
	"weft/prog/agent/live"
	"weft/prog/agent/privilege"
	"weft/prog/agent/statedir"
)

// belongsNowhere is the reason why an agent waits if it has no ring, no targets, and no decision of
// `weft launch` to found a network.
const belongsNowhere = "this host belongs to no network: join one with `weft launch --token - HOST`, or found one with `weft launch` (a supervisor's agent: weft agent --found)"

// AwaitLaunch serves the sockets of an agent that belongs to no network, and answers requests with that
// reason. It returns true when `weft launch` has decided, and false when the agent is stopped. before is
// launch's earlier decision (statedir.Launched), from when the agent found that it belongs to no
// network.
func AwaitLaunch(ctx context.Context, opts config.Options, before os.FileInfo) (launched bool, err error) {
	r := newRun(opts, belongsNowhere)
	ctx, r.stop = context.WithCancel(ctx)
	defer r.stop()
	if err := privilege.CheckAgent(); err != nil {
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
