package mesh

import "sync"

// outgoing holds deltas from the time when gossip listens until this host may send. Another host can join
// this one before memberlist.Create has returned, or before it is certain that no other host has this
// identity. A delta that comes meanwhile reaches the other hosts later: perhaps only this host has it. outgoing is
// safe for concurrent use.
type outgoing struct {
	mu     sync.Mutex
	stage  stage
	deltas []envelope
	bytes  int
}

type stage int

const (
	silent  stage = iota // gossip does not listen: no host has our states, so none needs the deltas
	holding              // gossip listens, but this host may not send
	sending
)

// listen begins to hold deltas. The transport has been set.
func (o *outgoing) listen() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stage = holding
}

// listens reports whether gossip listens, so that there is a transport.
func (o *outgoing) listens() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.stage != silent
}

// send ends the holding, and returns the deltas that were held, in their order.
func (o *outgoing) send() []envelope {
	o.mu.Lock()
	defer o.mu.Unlock()
	deltas := o.deltas
	o.stage, o.deltas, o.bytes = sending, nil, 0
	return deltas
}

// maySend reports whether this host may send a delta now. If not, and if it will send later, outgoing holds
// the delta. What exceeds maxQueued bytes is left to push/pull.
func (o *outgoing) maySend(e envelope) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stage == holding && o.bytes+len(e.Payload) <= maxQueued {
		o.deltas = append(o.deltas, e)
		o.bytes += len(e.Payload)
	}
	return o.stage == sending
}
