"""A link in float64 numpy by cumulative sums and their inverse: another way than the walk that it checks."""

import numpy as np

from nscjax import link


class Reference:
    def __init__(self, trace: link.Trace):
        self.seconds = np.asarray(trace.seconds, np.float64)
        self.rates = np.asarray(trace.mbit_per_s, np.float64)
        self.times = np.concatenate([[0.0], np.cumsum(self.seconds)])
        self.mbit = np.concatenate([[0.0], np.cumsum(self.seconds * self.rates)])
        self.period_s = self.times[-1]

    def position(self, clock: link.Clock) -> float:
        return self.times[int(clock.segment)] + float(clock.offset_s)

    def carried(self, time_s: float) -> float:
        """Mbit from time 0 to `time_s`."""
        laps, time_s = divmod(time_s, self.period_s)
        return laps * self.mbit[-1] + np.interp(time_s, self.times, self.mbit)

    def finish(self, start_s: float, mbit: float) -> float:
        """The first time at which `mbit` are through that leave from `start_s` on."""
        if mbit <= 0:
            return start_s
        target = self.carried(start_s) + mbit
        laps = np.ceil(target / self.mbit[-1]) - 1
        target -= laps * self.mbit[-1]
        segment = np.searchsorted(self.mbit, target, side="left") - 1
        return laps * self.period_s + self.times[segment] + (target - self.mbit[segment]) / self.rates[segment]

    def distance(self, a: float, b: float) -> float:
        """Seconds between two positions of the periodic trace."""
        apart = abs(a - b) % self.period_s
        return min(apart, self.period_s - apart)
